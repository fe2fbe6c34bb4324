import { rm } from "node:fs/promises";
import { request } from "node:http";
import { join } from "node:path";
import { APICallError } from "ai";
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { z } from "zod";
import type { Daemon } from "../../src/backends/daemon/server.ts";
import { startDaemon } from "../../src/backends/daemon/start.ts";
import { type GatewayOverDaemons, startGatewayOver } from "../support/gateway.ts";
import { tinyModel } from "../support/tiny-model.ts";
import type { Ask } from "./client.ts";
import { clientAt, clients } from "./clients.ts";

let model: string;
let daemon: Daemon;
let gateway: GatewayOverDaemons;
beforeAll(async () => {
  model = await tinyModel();
  daemon = await startDaemon({ model, port: 0, precision: "fast", threads: 1, kvTokens: 4096, maxRows: 8 });
  gateway = await startGatewayOver({
    model: "tiny",
    tokenizer: `file:${join(model, "tokenizer.json")}`,
    daemons: [daemon],
    tenant: { concurrency: 1 },
  });
});
afterAll(async () => {
  await gateway.close(0);
  await daemon.close();
  await rm(model, { recursive: true });
});

const errorBody = z.object({
  error: z.object({ message: z.string(), type: z.string(), code: z.string(), param: z.string().nullable() }),
});

/** What the typed error of each SDK tells its user. */
function told(error: unknown) {
  if (error instanceof OpenAI.APIError) {
    return { status: error.status, code: error.code, param: error.param ?? undefined, headers: error.headers };
  }
  if (APICallError.isInstance(error)) {
    const { code, param } = errorBody.parse(JSON.parse(error.responseBody ?? "")).error;
    return { status: error.statusCode, code, param: param ?? undefined, headers: new Headers(error.responseHeaders) };
  }
  throw new Error("no typed error", { cause: error });
}

const hello: Ask = { model: "tiny", prompt: "Hi", kind: "text", maxTokens: 4 };
const refusals: Record<string, { ask: Ask; key?: string; expected: Record<string, unknown>; type: unknown }> = {
  "an unknown key": {
    ask: hello,
    key: "sk-nobody",
    expected: { status: 401, code: "invalid_api_key" },
    type: OpenAI.AuthenticationError,
  },
  "a model that there is not": {
    ask: { ...hello, model: "huge" },
    expected: { status: 404, code: "model_not_found", param: "model" },
    type: OpenAI.NotFoundError,
  },
  "a field that is not supported": {
    ask: { ...hello, fields: { prediction: { type: "content", content: "Hi" } } },
    expected: { status: 400, code: "unsupported_parameter", param: "prediction" },
    type: OpenAI.BadRequestError,
  },
  "a field that nobody knows": {
    ask: { ...hello, fields: { frobnicate: 1 } },
    expected: { status: 400, code: "unknown_parameter", param: "frobnicate" },
    type: OpenAI.BadRequestError,
  },
};

const modes = ["streamed", "whole"] as const;

describe.each(Object.keys(clients))("%s", (name) => {
  const ask = (mode: (typeof modes)[number], question: Ask, key = gateway.key) =>
    clientAt(name, { baseURL: `${gateway.url}/v1`, apiKey: key })[mode](question);
  const typed = (type: unknown) => (clients[name]?.refusal === APICallError ? APICallError : type);

  // This provider sends on only what it knows itself.
  const sendable = Object.entries(refusals).filter(
    ([refused]) => name !== "AI SDK openai" || refused !== "a field that nobody knows",
  );
  it.each(sendable)("%s: a typed error with status, code and parameter", async (_, entry) => {
    for (const mode of modes) {
      const seen = await ask(mode, entry.ask, entry.key);
      expect(seen.text).toBe("");
      expect(seen.error).toBeInstanceOf(typed(entry.type));
      expect(told(seen.error)).toMatchObject(entry.expected);
    }
  });

  it("too many answers at once: a typed error that says when to come back", async () => {
    const leave = await takePlace(gateway);
    for (const mode of modes) {
      const seen = await ask(mode, hello);
      expect.soft(seen.error).toBeInstanceOf(typed(OpenAI.RateLimitError));
      const { headers, ...rest } = told(seen.error);
      expect.soft(rest).toMatchObject({ status: 429, code: "concurrency_limit_exceeded" });
      expect.soft(Number(headers?.get("retry-after"))).toBeGreaterThanOrEqual(1);
      expect.soft(Number(headers?.get("retry-after-ms"))).toBeGreaterThan(0);
    }
    await leave();
  });
});

it("a prompt that is too long: LangChain.js makes its own error of it, openai-node a 400", async () => {
  const options = { baseURL: `${gateway.url}/v1`, apiKey: gateway.key };
  const tooLong = { ...hello, prompt: "long ".repeat(100) };
  const [chained, plain] = await Promise.all(
    ["LangChain.js", "openai-node raw"].map((name) => clientAt(name, options).streamed(tooLong)),
  );
  expect(chained?.error).toMatchObject({ name: "ContextOverflowError" });
  expect(plain?.error).toMatchObject({ status: 400, code: "context_length_exceeded", param: "messages" });
});

/** A request whose body never comes: it holds its key's one place until it leaves. */
async function takePlace({ url, key, metric }: GatewayOverDaemons): Promise<() => Promise<void>> {
  const half = request(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${key}`, "content-type": "application/json", "content-length": 100 },
  });
  half.on("error", () => {});
  half.write("{");
  const active = () => metric("sluice_active_requests");
  await expect.poll(active, { timeout: 60_000 }).toBe(1);
  return async () => {
    half.destroy();
    await expect.poll(active, { timeout: 60_000 }).toBe(0);
  };
}
