import { readFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { text as readAll } from "node:stream/consumers";
import { type Command, Option } from "commander";
import { CommandError, exitCode } from "./exit.ts";
import { developmentKey } from "./home.ts";
import { decimal, type EngineFlags, integer, withEngineOptions } from "./options.ts";
import { note } from "./output.ts";

/** What both ways of generating need. */
export interface Generation {
  readonly prompt: string;
  /** The prompt as it is, without the model's chat template. */
  readonly raw: boolean;
  /** JSON Schema the answer must match. */
  readonly schema: unknown;
  readonly model: string;
  readonly maxTokens: number;
  readonly temperature: number;
  readonly seed: number | undefined;
}

export interface GenerationResult {
  readonly finishReason: string;
  readonly promptTokens: number;
  readonly completionTokens: number;
  /** Milliseconds from the request to the first token, and to the end. */
  readonly firstTokenMs: number;
  readonly totalMs: number;
}

interface GenerateFlags extends EngineFlags {
  readonly model: string;
  readonly schema?: string;
  readonly raw?: boolean;
  readonly maxTokens: number;
  readonly temperature: number;
  readonly seed?: number;
  readonly url?: string;
  readonly keyEnv?: string;
  readonly stats?: boolean;
}

export function addGenerate(program: Command, exit: (code: number) => void): void {
  const command = program
    .command("generate")
    .description("Answer one prompt on standard output, token by token; without servers unless --url names one")
    .argument("<prompt>", "the prompt; - reads it from standard input")
    .option("--schema <file or json>", "JSON Schema that the answer must match")
    .option("--model <reference>", "model to use", "smollm2")
    .option("--max-tokens <n>", "most tokens to generate", integer(1, 1_000_000), 256)
    .option("--temperature <t>", "0 = always the likeliest token", decimal(0, 2), 0)
    .option("--seed <n>", "repeats the same random draws", integer(0, 2 ** 31 - 1))
    .option("--raw", "continue the text as it is, without the chat template")
    .option("--stats", "tokens and times to standard error at the end")
    .option("--url <url>", "ask a running gateway (…/v1) instead of loading the model here")
    .addOption(
      new Option("--key-env <name>", "environment variable with the gateway's key (default: the development key)"),
    );
  withEngineOptions(command)
    .addHelpText(
      "after",
      `
Examples:
  sluice generate "What is the capital of Korea?"
  sluice generate --schema person.json "Maria is 34 and lives in Lisbon."
  echo "Once upon a time" | sluice generate --raw --temperature 0.8 --seed 7 -
  sluice generate --url http://127.0.0.1:8080/v1 "Hello"`,
    )
    .action(async (prompt: string, flags: GenerateFlags) => exit(await generate(prompt, flags)));
}

async function generate(given: string, flags: GenerateFlags): Promise<number> {
  const cancel = new AbortController();
  process.once("SIGINT", () => cancel.abort(new CommandError("interrupted", exitCode.interrupted)));
  const request: Generation = {
    prompt: given === "-" ? (await readAll(process.stdin)).trimEnd() : given,
    raw: flags.raw === true,
    schema: flags.schema === undefined ? undefined : await readSchema(flags.schema),
    model: flags.model,
    maxTokens: flags.maxTokens,
    temperature: flags.temperature,
    seed: flags.seed,
  };
  if (request.prompt === "") throw new CommandError("The prompt is empty.", exitCode.usage);

  const write = (piece: string) => void process.stdout.write(piece);
  let result: GenerationResult;
  if (flags.url === undefined) {
    const { generateHere } = await import("./generate-here.ts");
    const threads = flags.threads ?? availableParallelism();
    result = await generateHere(request, { ...flags, threads }, write, cancel.signal);
  } else {
    const { generateRemotely } = await import("./generate-remotely.ts");
    const target = { url: flags.url, key: await gatewayKey(flags.keyEnv) };
    result = await generateRemotely(request, target, write, cancel.signal);
  }
  process.stdout.write("\n");
  if (flags.stats === true) note(describe(result));
  if (result.finishReason === "length" && request.schema !== undefined) {
    throw new CommandError(
      `The answer was cut off after ${result.completionTokens} tokens and is not complete JSON; raise --max-tokens.`,
    );
  }
  return exitCode.ok;
}

async function gatewayKey(keyEnv: string | undefined): Promise<string> {
  if (keyEnv === undefined) return await developmentKey();
  const key = process.env[keyEnv];
  if (key === undefined || key === "") {
    throw new CommandError(`The environment variable ${keyEnv} is empty.`, exitCode.usage);
  }
  return key;
}

/** A file's name, or the schema itself when it begins like one. */
async function readSchema(given: string): Promise<unknown> {
  const inline = given.trimStart().startsWith("{");
  let text = given;
  if (!inline) {
    try {
      text = await readFile(given, "utf8");
    } catch (cause) {
      throw new CommandError(`The schema ${given} cannot be read.`, exitCode.unavailable, cause);
    }
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new CommandError(`${inline ? "The schema" : given} is no JSON: ${reason}`, exitCode.input, cause);
  }
}

function describe(result: GenerationResult): string {
  const { promptTokens, completionTokens, firstTokenMs, totalMs } = result;
  const decodeMs = totalMs - firstTokenMs;
  const rate = completionTokens > 1 && decodeMs > 0 ? ((completionTokens - 1) / decodeMs) * 1_000 : 0;
  return (
    `${promptTokens} tokens in, ${completionTokens} out (${result.finishReason}); ` +
    `first token after ${firstTokenMs.toFixed(0)} ms, then ${rate.toFixed(1)} tokens/s`
  );
}
