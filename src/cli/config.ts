import type { Command } from "commander";
import { exitCode } from "./exit.ts";
import { print } from "./output.ts";

export function addConfig(program: Command, exit: (code: number) => void): void {
  const config = program.command("config").description("Check a configuration file, or print its schema");
  config
    .command("check")
    .description("Read a configuration as the gateway would and name the path of each fault")
    .argument("<file>", "YAML or JSON")
    .addHelpText("after", "\nExamples:\n  sluice config check sluice.yaml")
    .action(async (file: string) => {
      const { loadConfig } = await import("../config/load.ts");
      const { models, pools, tenants } = await loadConfig(file);
      const count = (what: object) => Object.keys(what).length;
      print(`${file} is good (models: ${count(models)}, pools: ${count(pools)}, tenants: ${count(tenants)}).`);
      exit(exitCode.ok);
    });
  config
    .command("schema")
    .description("Print the JSON Schema of the configuration, for editors")
    .addHelpText("after", "\nExamples:\n  sluice config schema > sluice.schema.json")
    .action(async () => {
      const { configJsonSchema } = await import("../config/json-schema.ts");
      print(JSON.stringify(configJsonSchema(), undefined, 2));
    });
}
