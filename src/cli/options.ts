import { availableParallelism } from "node:os";
import { type Command, InvalidArgumentError, Option } from "commander";

/** Options that several commands share, and parsers that say what they expected. */

export function integer(min: number, max: number) {
  return (text: string): number => {
    const value = Number(text);
    if (!Number.isInteger(value) || value < min || value > max) {
      throw new InvalidArgumentError(`Expected a whole number from ${min} to ${max}.`);
    }
    return value;
  };
}

export function decimal(min: number, max: number) {
  return (text: string): number => {
    const value = Number(text);
    if (text.trim() === "" || !Number.isFinite(value) || value < min || value > max) {
      throw new InvalidArgumentError(`Expected a number from ${min} to ${max}.`);
    }
    return value;
  };
}

export interface EngineFlags {
  readonly threads?: number;
  readonly precision: "fast" | "exact";
  readonly kvTokens: number;
  readonly maxRows: number;
}

/** What a daemon and an in-process engine are sized by. */
export function withEngineOptions(command: Command): Command {
  return command
    .option(
      "--threads <n>",
      `compute threads of each engine (default: the cores, ${availableParallelism()} here, shared out)`,
      integer(1, 1024),
    )
    .addOption(
      new Option("--precision <kind>", "fast: quantised dot products; exact: fp32 throughout")
        .choices(["fast", "exact"])
        .default("fast"),
    )
    .option("--kv-tokens <n>", "size of the KV cache in tokens", integer(64, 100_000_000), 16_384)
    .option("--max-rows <n>", "generations that run at once", integer(1, 4096), 32);
}

/** The same flags again, for a child process. */
export function engineArgs(flags: EngineFlags, threads: number): readonly string[] {
  return [
    ...["--threads", String(threads), "--precision", flags.precision],
    ...["--kv-tokens", String(flags.kvTokens), "--max-rows", String(flags.maxRows)],
  ];
}
