import { createHash } from "node:crypto";
import OpenAI from "openai";
import { configSchema } from "../../src/config/schema.ts";
import { startGateway } from "../../src/gateway/platform/node.ts";

export interface GatewayOverDaemons {
  readonly url: string;
  readonly key: string;
  readonly openai: OpenAI;
  /** Everything logged so far. */
  readonly log: readonly string[];
  /** A counter or gauge as `/metrics` tells it, with its labels as they stand there; 0 = not there. */
  metric(name: string): Promise<number>;
  close(graceMs?: number): Promise<void>;
}

export interface GatewayOptions {
  /** The name that callers use. */
  readonly model: string;
  /** As a configuration names it: `gguf:PATH`, `file:PATH`. */
  readonly tokenizer: string;
  readonly daemons: ReadonlyArray<{ readonly url: string }>;
  /** Further fields of the one pool. */
  readonly pool?: Readonly<Record<string, unknown>>;
  /** Further fields of the model. */
  readonly modelFields?: Readonly<Record<string, unknown>>;
  /** Further fields of the one tenant. */
  readonly tenant?: Readonly<Record<string, unknown>>;
  /** The configuration's `grammar`. */
  readonly grammar?: Readonly<Record<string, unknown>>;
}

const key = "sk-test-of-the-gateway";

/** A gateway in this process on a port of its own, before daemons; ready. */
export async function startGatewayOver(options: GatewayOptions): Promise<GatewayOverDaemons> {
  const { model, tokenizer, daemons } = options;
  const ready = Promise.withResolvers<void>();
  const log: string[] = [];
  const gateway = await startGateway({
    config: configSchema.parse({
      listen: { port: 0 },
      // A machine that is slow to compile is no hostile schema.
      bounds: { grammarCompile: "60s" },
      grammar: options.grammar,
      models: { [model]: { pools: ["all"], tokenizer, ...options.modelFields } },
      pools: { all: { backend: "daemon", endpoints: daemons.map(({ url }) => url), ...options.pool } },
      tenants: {
        t: { keys: [`sha256:${createHash("sha256").update(key).digest("hex")}`], ...options.tenant },
      },
    }),
    write: (line) => void log.push(line),
    onReady: ready.resolve,
  });
  await ready.promise;
  const { url } = gateway;
  return {
    url,
    key,
    log,
    openai: new OpenAI({ apiKey: key, baseURL: `${url}/v1`, maxRetries: 0 }),
    metric: (name) => metricAt(url, name),
    close: (graceMs) => gateway.close(graceMs),
  };
}

/** Of a gateway or a daemon. */
export async function metricAt(url: string, name: string): Promise<number> {
  const lines = (await (await fetch(`${url}/metrics`)).text()).split("\n");
  const line = lines.find((each) => each.startsWith(`${name} `));
  return line === undefined ? 0 : Number(line.slice(name.length));
}
