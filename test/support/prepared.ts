import { type Config, configSchema } from "../../src/config/schema.ts";
import { blockKeys } from "../../src/gateway/prompt/blocks.ts";
import type { PreparedRequest } from "../../src/gateway/request.ts";
import { greedy } from "./requests.ts";

let count = 0;

/** A request as `prepare` leaves it, for a model named `m`. */
export function preparedRequest(changes: Partial<PreparedRequest> = {}): PreparedRequest {
  const promptIds = changes.promptIds ?? Uint32Array.from({ length: 40 }, (_, index) => index + 1);
  const { choice: _, ...sampling } = greedy;
  return {
    id: `prepared-${count++}`,
    receivedAt: 0,
    tenant: { name: "t", models: undefined, priority: 0, weight: 1, salt: "salt-t" },
    model: "m",
    promptIds,
    blockKeys: blockKeys(promptIds, 16, "salt-t"),
    blockSize: 16,
    maxNewTokens: 8,
    sampling,
    n: 1,
    stopIds: [],
    stop: [],
    grammar: undefined,
    logprobs: undefined,
    text: { kind: "completion", body: {} },
    ...changes,
  };
}

/** A configuration whose model `m` uses the given pools in order. `changes` go into every pool. */
export function poolsConfig(
  pools: Readonly<Record<string, readonly string[]>>,
  changes: Record<string, unknown> = {},
  model: Record<string, unknown> = {},
): Config {
  return configSchema.parse({
    models: { m: { pools: Object.keys(pools), tokenizer: "gguf:none", ...model } },
    pools: Object.fromEntries(
      Object.entries(pools).map(([name, endpoints]) => [name, { backend: "daemon", endpoints, ...changes }]),
    ),
    tenants: { t: { keys: [`sha256:${"0".repeat(64)}`] } },
  });
}
