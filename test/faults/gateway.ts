import { createHash } from "node:crypto";
import OpenAI from "openai";
import { configSchema } from "../../src/config/schema.ts";
import { type RunningGateway, startGateway } from "../../src/gateway/platform/node.ts";
import { byteTokenizer } from "../../src/gateway/testing/tokenizer.ts";
import { startUpstream, type Upstream, type UpstreamOptions } from "../support/upstream/server.ts";

const key = "sk-faults";

export interface FaultGatewayOptions {
  /** Pools in order: the upstream's model behind each, with what else the pool says. */
  readonly pools: ReadonlyArray<{ readonly model: string } & Readonly<Record<string, unknown>>>;
  readonly upstream?: UpstreamOptions;
  readonly model?: Readonly<Record<string, unknown>>;
}

/** A gateway on a port of its own whose model `m` is answered by the mock upstream's models, one pool each. */
export interface FaultGateway {
  readonly url: string;
  readonly openai: OpenAI;
  readonly upstream: Upstream;
  readonly log: ReadonlyArray<Record<string, unknown>>;
  post(path: string, body: unknown, signal?: AbortSignal): Promise<Response>;
  close(): Promise<void>;
}

/** All that the mock upstream can do. */
export const everything = {
  jsonSchema: true,
  jsonObject: true,
  tools: true,
  logprobs: true,
  seed: true,
  completions: true,
};

export async function startFaultGateway(options: FaultGatewayOptions): Promise<FaultGateway> {
  const upstream = await startUpstream({ timings: { tokenMs: 1 }, ...options.upstream });
  const pools = options.pools.map(({ model, ...rest }, index) => ({
    name: `${index}-${model}`,
    config: { backend: "openai", endpoints: [upstream.url], upstreamModel: model, capabilities: everything, ...rest },
  }));
  const config = configSchema.parse({
    listen: { port: 0 },
    models: { m: { pools: pools.map(({ name }) => name), tokenizer: "file:bytes", ...options.model } },
    pools: Object.fromEntries(pools.map(({ name, config: pool }) => [name, pool])),
    tenants: { t: { keys: [`sha256:${createHash("sha256").update(key).digest("hex")}`] } },
  });
  const ready = Promise.withResolvers<void>();
  const log: Array<Record<string, unknown>> = [];
  const gateway: RunningGateway = await startGateway({
    config,
    write: (line) => void log.push(JSON.parse(line)),
    onReady: ready.resolve,
    parts: { openTokenizer: byteTokenizer },
  });
  await ready.promise;
  const { url } = gateway;
  return {
    url,
    upstream,
    log,
    openai: new OpenAI({ apiKey: key, baseURL: `${url}/v1`, maxRetries: 0 }),
    post: (path, body, signal) =>
      fetch(url + path, {
        method: "POST",
        ...(signal !== undefined && { signal }),
        headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
        body: JSON.stringify(body),
      }),
    async close() {
      await gateway.close(0);
      await upstream.close();
    },
  };
}
