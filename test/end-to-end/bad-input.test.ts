import { request as httpRequest } from "node:http";
import { Readable } from "node:stream";
import { request } from "undici";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { z } from "zod";
import { startUp, type Up } from "../support/up.ts";

const errorBody = z.object({
  error: z.object({
    message: z.string().min(1),
    type: z.string(),
    param: z.string().nullable(),
    code: z.string(),
  }),
});

describe("bad input, against the running gateway", () => {
  let up: Up;

  beforeAll(async () => {
    up = await startUp();
  });

  afterAll(async () => {
    await up?.end();
  });

  async function send(body: string | Readable, headers: Record<string, string> = {}, path = "/v1/chat/completions") {
    const answer = await request(`${up.ready.url}${path}`, {
      method: "POST",
      headers: { authorization: `Bearer ${up.ready.key}`, "content-type": "application/json", ...headers },
      body,
    });
    const text = await answer.body.text();
    return { status: answer.statusCode, error: errorBody.parse(JSON.parse(text)).error };
  }

  const user = [{ role: "user", content: "Hi" }];
  const schemaRequest = (schema: unknown, strict = true) => ({
    response_format: { type: "json_schema", json_schema: { name: "x", strict, schema } },
  });
  /** A finite language with far more states than any budget: every object is optional in every order. */
  const wide = {
    type: "object",
    properties: Object.fromEntries(
      Array.from({ length: 4_000 }, (_, i) => [`property_${i}`, { type: "string", pattern: `^[a-z]{1,${i + 1}}$` }]),
    ),
    additionalProperties: false,
  };

  it.each([
    ["a missing messages", { messages: undefined }, 400, "missing_required_parameter", "messages"],
    ["a wrong type", { temperature: "hot" }, 400, "invalid_type", "temperature"],
    [
      "a wrong type deep inside",
      { messages: [{ role: "user", content: 7 }] },
      400,
      "invalid_type",
      "messages[0].content",
    ],
    ["a value out of range", { top_p: 2 }, 400, "invalid_value", "top_p"],
    ["an unknown role", { messages: [{ role: "wizard", content: "x" }] }, 400, "invalid_value", "messages[0].role"],
    ["no messages at all", { messages: [] }, 400, "invalid_value", "messages"],
    ["an unknown field", { temprature: 1 }, 400, "unknown_parameter", "temprature"],
    ["an unsupported field", { audio: { voice: "x" } }, 400, "unsupported_parameter", "audio"],
    [
      "an image",
      { messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: "http://x/y.png" } }] }] },
      400,
      "unsupported_parameter",
      "messages[0].content[0].type",
    ],
    ["a tool choice without tools", { tool_choice: "required" }, 400, "invalid_value", "tool_choice"],
    ["n out of range", { n: 1000 }, 400, "invalid_value", "n"],
  ])("refuses %s with the path of the fault", async (_, change, status, code, param) => {
    const { status: got, error } = await send(JSON.stringify({ model: up.ready.model, messages: user, ...change }));
    expect({ status: got, code: error.code, param: error.param }).toEqual({ status, code, param });
    expect(error.type).toBe("invalid_request_error");
  });

  it("refuses malformed JSON", async () => {
    const { status, error } = await send('{"model": "smollm2", "messages": [');
    expect(status).toBe(400);
    expect(error.code).toBe("invalid_json");
  });

  it("refuses an unknown model and names it", async () => {
    const { status, error } = await send(JSON.stringify({ model: "gpt-99", messages: user }));
    expect(status).toBe(404);
    expect(error).toMatchObject({ code: "model_not_found", param: "model" });
    expect(error.message).toContain("gpt-99");
  });

  it("refuses a caller without a key, and one with a wrong key", async () => {
    const body = JSON.stringify({ model: up.ready.model, messages: user });
    for (const authorization of ["", "Bearer sk-wrong"]) {
      const { status, error } = await send(body, { authorization });
      expect(status).toBe(401);
      expect(error.type).toBe("authentication_error");
    }
  });

  it("refuses a prompt longer than the context", async () => {
    const content = "word ".repeat(20_000);
    const { status, error } = await send(
      JSON.stringify({ model: up.ready.model, messages: [{ role: "user", content }] }),
    );
    expect(status).toBe(400);
    expect(error.code).toBe("context_length_exceeded");
  });

  it.each([
    ["an invalid schema", { type: "strin" }],
    ["a schema that cannot be kept", { type: "array", items: { type: "integer" }, uniqueItems: true }],
    ["a schema with a dangling reference", { $ref: "#/$defs/missing" }],
  ])("refuses %s with the path inside the schema", async (_, schema) => {
    const { status, error } = await send(
      JSON.stringify({ model: up.ready.model, messages: user, ...schemaRequest(schema, false) }),
    );
    expect(status).toBe(400);
    expect(error.param).toMatch(/^response_format/);
  });

  it("refuses a schema over its budget and goes on serving others", async () => {
    const started = performance.now();
    const { status } = await send(
      JSON.stringify({ model: up.ready.model, messages: user, ...schemaRequest(wide, false) }),
    );
    expect(status).toBe(400);
    expect(performance.now() - started).toBeLessThan(60_000);
    const answer = await request(`${up.ready.url}/v1/chat/completions`, {
      method: "POST",
      headers: { authorization: `Bearer ${up.ready.key}`, "content-type": "application/json" },
      body: JSON.stringify({ model: up.ready.model, messages: user, max_tokens: 1 }),
    });
    await answer.body.dump();
    expect(answer.statusCode).toBe(200);
  });

  const tooLarge = JSON.stringify({ model: "x", messages: [{ role: "user", content: "x".repeat(5 * 1024 * 1024) }] });

  it("refuses a body that is too large", async () => {
    const { status, error } = await send(tooLarge);
    expect(status).toBe(413);
    expect(error.type).toBe("invalid_request_error");
  });

  it("refuses a chunked body that is too large, without a content-length to go by", async () => {
    const status = await new Promise<number | undefined>((resolve, reject) => {
      let answered = false;
      const outgoing = httpRequest(
        `${up.ready.url}/v1/chat/completions`,
        {
          method: "POST",
          headers: { authorization: `Bearer ${up.ready.key}`, "content-type": "application/json" },
        },
        (answer) => {
          answered = true;
          answer.resume();
          resolve(answer.statusCode);
        },
      );
      // The gateway may close while we still write: the answer counts, not the broken pipe.
      outgoing.on("error", (error) => {
        if (!answered) reject(error);
      });
      Readable.from([tooLarge.slice(0, 2_000_000), tooLarge.slice(2_000_000)]).pipe(outgoing);
    });
    expect(status).toBe(413);
  });

  it("answers an unknown path with a 404 in the same shape", async () => {
    const { status, error } = await send("{}", {}, "/v1/nothing");
    expect(status).toBe(404);
    expect(error.code).toBe("unknown_url");
  });
});
