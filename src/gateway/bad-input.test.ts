import { request as httpRequest } from "node:http";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createGrammarCompiler } from "../grammar/compiler.ts";
import type { GrammarCompiler } from "../grammar/grammar.ts";
import { say, scriptedDispatcher } from "./testing/dispatcher.ts";
import { otherKey, startTestGateway, type TestGateway, testKey } from "./testing/gateway.ts";
import { byteTokenizer } from "./testing/tokenizer.ts";

const user = { role: "user", content: "Hi" };
const chat = (fields: Record<string, unknown>) => ({ model: "tiny", messages: [user], ...fields });
const parts = (...content: unknown[]) => chat({ messages: [user, { role: "user", content }] });
const schema = (value: unknown, more: Record<string, unknown> = {}) =>
  chat({ response_format: { type: "json_schema", json_schema: { name: "answer", schema: value } }, ...more });
const tool = { type: "function", function: { name: "look", parameters: { type: "object" } } };

interface Bad {
  readonly name: string;
  readonly body: unknown;
  readonly status?: number;
  readonly code: string;
  readonly param: string | null;
}

const chatTable: Bad[] = [
  { name: "malformed JSON", body: '{"model": "tiny", ', code: "invalid_json", param: null },
  { name: "a body that is no object", body: "[]", code: "invalid_type", param: null },
  { name: "no model", body: { messages: [user] }, code: "missing_required_parameter", param: "model" },
  { name: "no messages", body: { model: "tiny" }, code: "missing_required_parameter", param: "messages" },
  { name: "empty messages", body: chat({ messages: [] }), code: "invalid_value", param: "messages" },
  { name: "a wrong type at the top", body: chat({ temperature: "hot" }), code: "invalid_type", param: "temperature" },
  { name: "a value out of range", body: chat({ temperature: 3 }), code: "invalid_value", param: "temperature" },
  { name: "a fraction for an integer", body: chat({ max_tokens: 1.5 }), code: "invalid_type", param: "max_tokens" },
  { name: "no tokens at all", body: chat({ max_tokens: 0 }), code: "invalid_value", param: "max_tokens" },
  {
    name: "content of a wrong type",
    body: chat({ messages: [user, { role: "user", content: 7 }] }),
    code: "invalid_type",
    param: "messages[1].content",
  },
  {
    name: "an unknown role",
    body: chat({ messages: [{ role: "king", content: "Hi" }] }),
    code: "invalid_value",
    param: "messages[0].role",
  },
  {
    name: "a text part without text",
    body: parts({ type: "text" }),
    code: "missing_required_parameter",
    param: "messages[1].content[0].text",
  },
  {
    name: "an image part",
    body: parts({ type: "text", text: "See" }, { type: "image_url", image_url: { url: "https://example.com/a.png" } }),
    code: "unsupported_parameter",
    param: "messages[1].content[1].type",
  },
  {
    name: "an audio part",
    body: parts({ type: "input_audio", input_audio: { data: "", format: "wav" } }),
    code: "unsupported_parameter",
    param: "messages[1].content[0].type",
  },
  {
    name: "an unknown part",
    body: parts({ type: "smell" }),
    code: "invalid_value",
    param: "messages[1].content[0].type",
  },
  { name: "an unknown field", body: chat({ temprature: 1 }), code: "unknown_parameter", param: "temprature" },
  {
    name: "an unknown field deep inside",
    body: chat({ messages: [{ ...user, colour: "red" }] }),
    code: "unknown_parameter",
    param: "messages[0].colour",
  },
  {
    name: "an unknown field in a content part",
    body: parts({ type: "text", text: "a", cache_control: {} }),
    code: "unknown_parameter",
    param: "messages[1].content[0].cache_control",
  },
  { name: "audio output", body: chat({ audio: { voice: "x" } }), code: "unsupported_parameter", param: "audio" },
  { name: "spoken answers", body: chat({ modalities: ["audio"] }), code: "unsupported_parameter", param: "modalities" },
  {
    name: "web search",
    body: chat({ web_search_options: {} }),
    code: "unsupported_parameter",
    param: "web_search_options",
  },
  { name: "functions", body: chat({ functions: [] }), code: "unsupported_parameter", param: "functions" },
  { name: "five stop strings", body: chat({ stop: ["a", "b", "c", "d", "e"] }), code: "invalid_value", param: "stop" },
  { name: "an empty stop string", body: chat({ stop: [""] }), code: "invalid_value", param: "stop[0]" },
  { name: "top_logprobs alone", body: chat({ top_logprobs: 2 }), code: "invalid_value", param: "top_logprobs" },
  {
    name: "a bias for no token",
    body: chat({ logit_bias: { "999": 1 } }),
    code: "invalid_value",
    param: "logit_bias.999",
  },
  {
    name: "a bias that is no id",
    body: chat({ logit_bias: { dog: 1 } }),
    code: "invalid_value",
    param: "logit_bias.dog",
  },
  {
    name: "an unknown model",
    body: { ...chat({}), model: "gpt-9" },
    status: 404,
    code: "model_not_found",
    param: "model",
  },
  {
    name: "a model of other tenants",
    body: { ...chat({}), model: "secret" },
    status: 404,
    code: "model_not_found",
    param: "model",
  },
  {
    name: "a prompt that is too long",
    body: chat({ messages: [{ role: "user", content: "a".repeat(2030) }] }),
    code: "context_length_exceeded",
    param: "messages",
  },
  {
    name: "a prompt that is far too long",
    body: chat({ messages: [{ role: "user", content: "a".repeat(900_000) }] }),
    code: "context_length_exceeded",
    param: "messages",
  },
  {
    name: "a schema that is none",
    body: schema({ type: "objekt" }),
    code: "invalid_schema",
    param: "response_format.json_schema.schema/type",
  },
  {
    name: "a schema that cannot be kept",
    body: schema({ type: "object", properties: { a: { type: "array", uniqueItems: true } } }),
    code: "unsupported_schema",
    param: "response_format.json_schema.schema/properties/a/uniqueItems",
  },
  {
    name: "a schema over the budget",
    body: schema({ type: "object", properties: { a: { description: "x".repeat(70_000) } } }),
    code: "schema_too_complex",
    param: "response_format.json_schema.schema",
  },
  {
    name: "a tool whose schema cannot be kept",
    body: chat({
      tools: [{ type: "function", function: { name: "look", parameters: { type: "array", uniqueItems: true } } }],
    }),
    code: "unsupported_schema",
    param: "tools[0].function.parameters/uniqueItems",
  },
  {
    name: "a schema in the other field",
    body: chat({ structured_outputs: { json: { type: "objekt" } } }),
    code: "invalid_schema",
    param: "structured_outputs.json/type",
  },
  {
    name: "a schema of a wrong type",
    body: schema("object"),
    code: "invalid_type",
    param: "response_format.json_schema.schema",
  },
  {
    name: "a schema without a name",
    body: chat({ response_format: { type: "json_schema", json_schema: { schema: {} } } }),
    code: "missing_required_parameter",
    param: "response_format.json_schema.name",
  },
  {
    name: "an unknown response format",
    body: chat({ response_format: { type: "xml" } }),
    code: "invalid_value",
    param: "response_format.type",
  },
  {
    name: "a stop string that could cut JSON",
    body: schema({ type: "object" }, { stop: "}" }),
    code: "unsupported_parameter",
    param: "stop",
  },
  {
    name: "tools together with a schema",
    body: schema({ type: "object" }, { tools: [tool] }),
    code: "unsupported_parameter",
    param: "tools",
  },
  {
    name: "a choice without tools",
    body: chat({ tool_choice: "required" }),
    code: "invalid_value",
    param: "tool_choice",
  },
  {
    name: "a choice of a tool that is not there",
    body: chat({ tools: [tool], tool_choice: { type: "function", function: { name: "smell" } } }),
    code: "invalid_value",
    param: "tool_choice.function.name",
  },
  {
    name: "a custom tool",
    body: chat({ tools: [{ type: "custom", custom: { name: "x" } }] }),
    code: "invalid_value",
    param: "tools[0].type",
  },
  {
    name: "two tools of one name",
    body: chat({ tools: [tool, tool] }),
    code: "invalid_value",
    param: "tools[1].function.name",
  },
];

const completionTable: Bad[] = [
  { name: "no prompt", body: { model: "tiny" }, code: "missing_required_parameter", param: "prompt" },
  { name: "a prompt of a wrong type", body: { model: "tiny", prompt: 7 }, code: "invalid_type", param: "prompt" },
  { name: "an empty prompt", body: { model: "tiny", prompt: "" }, code: "invalid_value", param: "prompt" },
  {
    name: "a token of no vocabulary",
    body: { model: "tiny", prompt: [1, 9999] },
    code: "invalid_value",
    param: "prompt[1]",
  },
  { name: "echo", body: { model: "tiny", prompt: "a", echo: true }, code: "unsupported_parameter", param: "echo" },
  {
    name: "a suffix",
    body: { model: "tiny", prompt: "a", suffix: "b" },
    code: "unsupported_parameter",
    param: "suffix",
  },
  {
    name: "best_of",
    body: { model: "tiny", prompt: "a", best_of: 3 },
    code: "unsupported_parameter",
    param: "best_of",
  },
  {
    name: "chat's logprobs",
    body: { model: "tiny", prompt: "a", logprobs: true },
    code: "invalid_type",
    param: "logprobs",
  },
  {
    name: "too many answers",
    body: { model: "tiny", prompt: ["a", "b"], n: 100 },
    code: "invalid_value",
    param: "n",
  },
];

describe("bad input is refused with OpenAI's error, the path of the fault, and no word to a backend", () => {
  const dispatcher = scriptedDispatcher(say("never"));
  let gateway: TestGateway;
  let grammars: GrammarCompiler;
  beforeAll(async () => {
    grammars = createGrammarCompiler({ vocabulary: (await byteTokenizer()).vocabulary });
    gateway = await startTestGateway(dispatcher, { grammars });
  });
  afterAll(async () => {
    await gateway[Symbol.asyncDispose]();
    await grammars.close();
  });

  const check = async (path: string, bad: Bad) => {
    const response = await gateway.post(path, bad.body);
    const { error } = (await response.json()) as { error: Record<string, unknown> };
    expect({ status: response.status, code: error.code, param: error.param }).toEqual({
      status: bad.status ?? 400,
      code: bad.code,
      param: bad.param,
    });
    expect(error.type).toBe("invalid_request_error");
    expect(error.message).toEqual(expect.stringMatching(/^[A-Z`].*\.$/));
    expect(Object.keys(error).sort()).toEqual(["code", "message", "param", "type"]);
    expect(dispatcher.requests).toHaveLength(0);
  };
  test.each(chatTable)("chat: $name", (bad) => check("/v1/chat/completions", bad));
  test.each(completionTable)("completions: $name", (bad) => check("/v1/completions", bad));

  test("no message of an error repeats what the caller sent", async () => {
    const response = await gateway.post(
      "/v1/chat/completions",
      chat({ messages: [{ role: "my-secret-text", content: "x" }] }),
    );
    expect(await response.text()).not.toContain("my-secret-text");
  });

  test.each([
    { name: "no key", headers: {} },
    { name: "a wrong key", headers: { authorization: "Bearer sk-wrong" } },
    { name: "another scheme", headers: { authorization: `Basic ${testKey}` } },
  ])("$name is a 401", async ({ headers }) => {
    const response = await fetch(`${gateway.url}/v1/chat/completions`, { method: "POST", headers, body: "{}" });
    expect(response.status).toBe(401);
    expect(await response.json()).toMatchObject({ error: { code: "invalid_api_key", type: "authentication_error" } });
  });

  test("a body over the limit is a 413, by its content-length and when it comes in chunks", async () => {
    await using small = await startTestGateway(dispatcher, { config: { bounds: { bodyBytes: 2048 } } });
    const body = JSON.stringify(chat({ messages: [{ role: "user", content: "a".repeat(4096) }] }));
    const whole = await small.post("/v1/chat/completions", body);
    expect(whole.status).toBe(413);
    expect(await whole.json()).toMatchObject({ error: { code: "request_too_large" } });
    expect(await chunked(`${small.url}/v1/chat/completions`, body)).toMatchObject({ status: 413 });
    // A content type with parameters, or none, is no way round.
    const odd = await small.post("/v1/chat/completions", body, {
      headers: { "content-type": "text/plain; charset=x" },
    });
    expect(odd.status).toBe(413);
  });

  test("unknown fields pass where the operator says so, and everything else is still checked", async () => {
    await using lenient = await startTestGateway(scriptedDispatcher(say("ok")), {
      config: { compat: { unknownFields: "ignore" } },
    });
    const odd = chat({ temprature: 1, messages: [{ role: "user", content: [{ type: "text", text: "a", odd: 1 }] }] });
    expect((await lenient.post("/v1/chat/completions", odd)).status).toBe(200);
    const wrong = await lenient.post("/v1/chat/completions", { ...odd, temperature: "hot" });
    expect(await wrong.json()).toMatchObject({ error: { param: "temperature" } });
  });

  test("fields that are for the caller's own books are taken", async () => {
    await using open = await startTestGateway(scriptedDispatcher(say("ok")));
    const harmless = {
      user: "u",
      metadata: { a: "b" },
      store: true,
      service_tier: "auto",
      safety_identifier: "s",
      prompt_cache_key: "k",
      modalities: ["text"],
      audio: null,
      functions: null,
      stop: null,
      tools: null,
      response_format: { type: "text" },
    };
    expect((await open.post("/v1/chat/completions", chat(harmless))).status).toBe(200);
  });

  test("a route that does not exist answers in OpenAI's form", async () => {
    const response = await gateway.post("/v1/embeddings", {});
    expect(response.status).toBe(404);
    expect(await response.json()).toMatchObject({ error: { code: "unknown_url" } });
  });

  test("models are listed and shown as far as a tenant may use them", async () => {
    const get = (path: string, key: string) =>
      fetch(gateway.url + path, { headers: { authorization: `Bearer ${key}` } });
    expect(await (await get("/v1/models", testKey)).json()).toMatchObject({ object: "list", data: [{ id: "tiny" }] });
    expect(await (await get("/v1/models", otherKey)).json()).toMatchObject({
      data: [{ id: "tiny" }, { id: "secret" }],
    });
    expect(await (await get("/v1/models/tiny", testKey)).json()).toMatchObject({ id: "tiny", object: "model" });
    expect((await get("/v1/models/secret", testKey)).status).toBe(404);
    expect((await fetch(`${gateway.url}/v1/models`)).status).toBe(401);
  });
});

function chunked(url: string, body: string): Promise<{ status: number; body: string }> {
  return new Promise((resolve, reject) => {
    const request = httpRequest(
      url,
      { method: "POST", headers: { authorization: `Bearer ${testKey}` } },
      (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (chunk: string) => {
          text += chunk;
        });
        response.on("end", () => resolve({ status: response.statusCode ?? 0, body: text }));
      },
    );
    request.on("error", reject);
    for (let at = 0; at < body.length; at += 512) request.write(body.slice(at, at + 512));
    request.end();
  });
}
