import { createHash } from "node:crypto";
import type { Daemon, DaemonOptions } from "../../src/backends/daemon/server.ts";
import { startDaemon } from "../../src/backends/daemon/start.ts";
import { parseConfig } from "../../src/config/parse.ts";
import { type RunningGateway, startGateway } from "../../src/gateway/platform/node.ts";
import { resolveModel } from "../../src/models/index.ts";

/** One gateway and one daemon with the real model in this process, so that a test sees the engine itself. */
export interface Pair {
  readonly daemon: Daemon;
  readonly gateway: RunningGateway;
  readonly key: string;
  readonly model: string;
  close(): Promise<void>;
}

export async function startPair(options: Partial<DaemonOptions> = {}): Promise<Pair> {
  const model = "smollm2";
  const { path } = await resolveModel(model, { signal: AbortSignal.timeout(120_000) });
  const daemon = await startDaemon({
    model: path,
    port: 0,
    precision: "fast",
    threads: 2,
    kvTokens: 16_384,
    maxRows: 32,
    ...options,
  });
  const key = "sk-test-of-the-pair";
  const ready = Promise.withResolvers<void>();
  const config = parseConfig(
    JSON.stringify({
      listen: { port: 0 },
      models: { [model]: { pools: ["only"], tokenizer: `gguf:${path}` } },
      pools: {
        only: { backend: "daemon", endpoints: [daemon.url], deadlines: { firstToken: "60s", betweenTokens: "30s" } },
      },
      tenants: { test: { keys: [`sha256:${createHash("sha256").update(key).digest("hex")}`] } },
    }),
    {},
  );
  const gateway = await startGateway({ config, write: () => {}, onReady: ready.resolve });
  await ready.promise;
  return {
    daemon,
    gateway,
    key,
    model,
    async close() {
      await gateway.close(1_000);
      await daemon.close();
    },
  };
}
