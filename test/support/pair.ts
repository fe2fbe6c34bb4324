import type { Daemon, DaemonOptions } from "../../src/backends/daemon/server.ts";
import { startDaemon } from "../../src/backends/daemon/start.ts";
import { type GatewayOptions, type GatewayOverDaemons, startGatewayOver } from "./gateway.ts";
import { smollm2 } from "./smollm2.ts";

/** One gateway and one daemon with the real model in this process, so that a test sees the engine itself. */
export interface Pair {
  readonly daemon: Daemon;
  readonly gateway: GatewayOverDaemons;
  readonly key: string;
  readonly model: string;
  close(): Promise<void>;
}

export async function startPair(
  options: Partial<DaemonOptions> = {},
  gatewayOptions: Partial<GatewayOptions> = {},
): Promise<Pair> {
  const path = await smollm2();
  const daemon = await startDaemon({
    model: path,
    port: 0,
    precision: "fast",
    threads: 2,
    kvTokens: 16_384,
    maxRows: 32,
    ...options,
  });
  const model = "smollm2";
  const gateway = await startGatewayOver({
    model,
    tokenizer: `gguf:${path}`,
    daemons: [daemon],
    pool: { deadlines: { firstToken: "60s", betweenTokens: "60s" } },
    ...gatewayOptions,
  });
  return {
    daemon,
    gateway,
    key: gateway.key,
    model,
    async close() {
      await gateway.close(1_000);
      await daemon.close();
    },
  };
}
