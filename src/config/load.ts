import { readFile } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { configFault, type Environment, parseConfig } from "./parse.ts";
import type { Config } from "./schema.ts";

/**
 * Reads the configuration file. Relative tokenizer paths start at the file's folder and come back absolute. Throws
 * SluiceError `invalid_config` with the path of the fault.
 */
export async function loadConfig(file: string, environment: Environment = process.env): Promise<Config> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    const missing = error instanceof Error && "code" in error && error.code === "ENOENT";
    throw configFault(undefined, missing ? `There is no file ${file}.` : `Cannot read ${file}.`, error);
  }
  const config = parseConfig(text, environment);
  return { ...config, models: absoluteTokenizers(config.models, dirname(resolve(file))) };
}

function absoluteTokenizers(models: Config["models"], baseDirectory: string): Config["models"] {
  return Object.fromEntries(
    Object.entries(models).map(([name, model]) => {
      const [, scheme, path] = /^(gguf|file):(.+)$/s.exec(model.tokenizer) ?? [];
      if (scheme === undefined || path === undefined) return [name, model];
      return [name, { ...model, tokenizer: `${scheme}:${resolve(baseDirectory, path)}` }];
    }),
  );
}
