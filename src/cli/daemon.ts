import { availableParallelism } from "node:os";
import type { Command } from "commander";
import { CommandError, exitCode } from "./exit.ts";
import { bringModel } from "./models.ts";
import { type EngineFlags, integer, withEngineOptions } from "./options.ts";
import { progress } from "./output.ts";
import { serve } from "./serve.ts";
import { isSupervised, tellSupervisor } from "./supervisor/messages.ts";

interface DaemonFlags extends EngineFlags {
  readonly host: string;
  readonly port: number;
  readonly model: string;
  readonly poolKeyEnv?: string;
}

export function addDaemon(program: Command): void {
  const command = program
    .command("daemon")
    .description("Serve one model over the daemon protocol: token ids in, token ids out")
    .option("--host <address>", "address to listen on; off loopback a pool key is needed", "127.0.0.1")
    .option("--port <n>", "port to listen on; 0 = any free one", integer(0, 65_535), 8100)
    .option("--model <reference>", "model to serve: a known name, a path, file:, https: or hf: reference", "smollm2")
    .option("--pool-key-env <name>", "environment variable with the key that gateways must present");
  withEngineOptions(command)
    .addHelpText(
      "after",
      `
Examples:
  sluice daemon --model smollm2
  POOL_KEY=... sluice daemon --host 10.0.1.11 --pool-key-env POOL_KEY`,
    )
    .action(async (flags: DaemonFlags, self: Command) => {
      const verbose = self.optsWithGlobals().verbose === true;
      await serve(() => start(flags), verbose);
    });
}

async function start(flags: DaemonFlags) {
  const poolKey = flags.poolKeyEnv === undefined ? undefined : process.env[flags.poolKeyEnv];
  if (flags.poolKeyEnv !== undefined && (poolKey ?? "") === "") {
    throw new CommandError(`The environment variable ${flags.poolKeyEnv} is empty.`, exitCode.usage);
  }
  // Loaded here and not above: `sluice --help` and the supervisor need none of it.
  const { startDaemon } = await import("../backends/daemon/start.ts");
  const bar = isSupervised() ? undefined : progress("loading the model");
  try {
    return await startDaemon({
      model: await bringModel(flags.model),
      host: flags.host,
      port: flags.port,
      poolKey,
      precision: flags.precision,
      threads: flags.threads ?? availableParallelism(),
      kvTokens: flags.kvTokens,
      maxRows: flags.maxRows,
      onLoadProgress(fraction) {
        bar?.update(fraction);
        tellSupervisor({ type: "progress", fraction });
      },
    });
  } finally {
    bar?.end();
  }
}
