import type { Command } from "commander";
import { integer } from "./options.ts";
import { serve } from "./serve.ts";

export function addGateway(program: Command): void {
  program
    .command("gateway")
    .description("Serve the OpenAI API in front of the daemons that a configuration names")
    .requiredOption("--config <file>", "YAML or JSON; `sluice config schema` prints its schema")
    .option("--port <n>", "instead of the configuration's listen.port; 0 = any free one", integer(0, 65_535))
    .option("--threads <n>", "threads that serve the port, each an event loop of its own", integer(1, 64), 1)
    .addHelpText(
      "after",
      `
Examples:
  sluice gateway --config sluice.yaml
  sluice gateway --config sluice.yaml --threads 4
  sluice config check sluice.yaml && sluice gateway --config sluice.yaml --port 9000`,
    )
    .action(
      async (flags: { readonly config: string; readonly port?: number; readonly threads: number }, self: Command) => {
        const verbose = self.optsWithGlobals().verbose === true;
        await serve(async () => {
          // Loaded here and not above: `sluice --help` and the supervisor need none of it.
          const [{ loadConfig }, { startGateway }] = await Promise.all([
            import("../config/load.ts"),
            import("../gateway/platform/node.ts"),
          ]);
          const config = await loadConfig(flags.config);
          const listen = flags.port === undefined ? config.listen : { ...config.listen, port: flags.port };
          return await startGateway({
            config: { ...config, listen },
            configPath: flags.config,
            threads: flags.threads,
          });
        }, verbose);
      },
    );
}
