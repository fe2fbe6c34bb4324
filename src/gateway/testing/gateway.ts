import { createHash } from "node:crypto";
import OpenAI from "openai";
import { fetch, type Response } from "undici";
import { configSchema } from "../../config/schema.ts";
import type { GrammarCompiler } from "../../grammar/grammar.ts";
import { createLogger } from "../../telemetry/logs.ts";
import { noTracing, type Tracing } from "../../telemetry/spans.ts";
import { createApp } from "../app.ts";
import { Gateway } from "../gateway.ts";
import { createNodePlatform } from "../platform/node-exchange.ts";
import type { Platform } from "../platform/platform.ts";
import { type Listening, listen } from "../platform/node-server.ts";
import type { ServedModel } from "../prepare.ts";
import { createDirectory } from "../tenants/directory.ts";
import type { TenantGate } from "../tenants/gate.ts";
import type { ScriptedDispatcher } from "./dispatcher.ts";
import { byteTokenizer } from "./tokenizer.ts";

export const testKey = "sk-test-key";
export const otherKey = "sk-other-key";

const sha256 = (text: string): string => createHash("sha256").update(text).digest("hex");

export interface TestGateway extends AsyncDisposable {
  readonly url: string;
  readonly gateway: Gateway;
  readonly listening: Listening;
  readonly log: string[];
  readonly openai: OpenAI;
  /** POST with the test key; a string goes as it is. */
  post(
    path: string,
    body: unknown,
    init?: { headers?: Record<string, string>; signal?: AbortSignal },
  ): Promise<Response>;
}

export interface TestGatewayOptions {
  /** Merged over the default configuration. */
  readonly config?: Record<string, unknown>;
  readonly tracing?: Tracing;
  readonly grammars?: GrammarCompiler;
}

/** Names each source. What a real compiler refuses is tested with the real one. */
const namingCompiler: GrammarCompiler = {
  compile: async (source) => ({ hash: sha256(JSON.stringify(source)), engine: "xgrammar", bytes: new Uint8Array(0) }),
  close: async () => {},
};

export interface TestApp {
  readonly gateway: Gateway;
  readonly app: ReturnType<typeof createApp>;
  readonly log: string[];
}

/** A whole gateway with a scripted dispatcher where the backends would be; not listening. */
export async function buildTestApp(
  dispatcher: ScriptedDispatcher,
  platform: Platform,
  options: TestGatewayOptions = {},
): Promise<TestApp> {
  const config = configSchema.parse({
    models: {
      tiny: { pools: ["east"], tokenizer: "gguf:unused" },
      secret: { pools: ["east"], tokenizer: "gguf:unused" },
    },
    pools: { east: { backend: "daemon", endpoints: ["http://127.0.0.1:1"] } },
    tenants: {
      acme: { keys: [`sha256:${sha256(testKey)}`], models: ["tiny"] },
      other: { keys: [`sha256:${sha256(otherKey)}`] },
    },
    ...options.config,
  });
  const gates = new Map<string, TenantGate>();
  const log: string[] = [];
  const tokenizer = await byteTokenizer();
  const models = new Map<string, ServedModel>();
  for (const [name, entry] of Object.entries(config.models)) {
    models.set(name, { name, config: entry, tokenizer, grammars: options.grammars ?? namingCompiler });
  }
  const directory = await createDirectory(config, new TextEncoder().encode("a salt key of the tests"), gates);
  const gateway = new Gateway({
    platform,
    log: createLogger({ write: (line) => void log.push(line), wall: platform.clock.wall }),
    tracing: options.tracing ?? noTracing,
    services: { config, directory, models, dispatcher },
    gates,
  });
  return { gateway, app: createApp(gateway), log };
}

/** The same on a port of its own. */
export async function startTestGateway(
  dispatcher: ScriptedDispatcher,
  options: TestGatewayOptions = {},
): Promise<TestGateway> {
  const { gateway, app, log } = await buildTestApp(dispatcher, createNodePlatform(), options);
  const listening = await listen(gateway, app, { host: "127.0.0.1", port: 0 });
  const { url } = listening;
  return {
    url,
    gateway,
    listening,
    log,
    openai: new OpenAI({ apiKey: testKey, baseURL: `${url}/v1`, maxRetries: 0 }),
    post: (path, body, init = {}) =>
      fetch(url + path, {
        method: "POST",
        headers: { authorization: `Bearer ${testKey}`, "content-type": "application/json", ...init.headers },
        body: typeof body === "string" ? body : JSON.stringify(body),
        ...(init.signal && { signal: init.signal }),
      }),
    [Symbol.asyncDispose]: () => listening.close(0),
  };
}
