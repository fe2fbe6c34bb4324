// Runs a program and keeps the end of its output for the message when it fails.
import { spawn } from "node:child_process";
import { availableParallelism } from "node:os";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";

export const root = dirname(dirname(fileURLToPath(import.meta.url)));
export const cores = availableParallelism();

/** A fault of the machine or its set-up, told without a stack trace. */
export class SetupError extends Error {}

/**
 * Resolves with the program's whole output; rejects with a SetupError that ends in its last lines.
 * @param {string} program
 * @param {readonly string[]} args
 * @param {{ cwd?: string, env?: NodeJS.ProcessEnv, onLine?: (line: string) => void }} [options]
 * @returns {Promise<string>}
 */
export function run(program, args, options = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      cwd: options.cwd ?? root,
      env: options.env ?? process.env,
      stdio: ["ignore", "pipe", "pipe"],
    });
    let output = "";
    const read = (stream) => {
      let rest = "";
      stream.setEncoding("utf8");
      stream.on("data", (text) => {
        output += text;
        const lines = (rest + text).split("\n");
        rest = lines.pop() ?? "";
        if (options.onLine) for (const line of lines) options.onLine(line);
      });
    };
    read(child.stdout);
    read(child.stderr);
    child.on("error", (cause) => reject(new SetupError(`${program} could not be started: ${cause.message}`)));
    child.on("close", (code, signal) => {
      if (code === 0) resolve(output);
      else {
        const tail = output.trimEnd().split("\n").slice(-40).join("\n");
        reject(new SetupError(`${program} ${args[0] ?? ""} ended with ${signal ?? `exit code ${code}`}:\n${tail}`));
      }
    });
  });
}

/** True when `program args` runs and ends well. */
export async function works(program, args) {
  try {
    await run(program, args);
    return true;
  } catch {
    return false;
  }
}

/** Runs a script's main function: plain messages for known faults, exit code 1. */
export async function main(work) {
  try {
    await work();
  } catch (error) {
    const text = error instanceof SetupError ? error.message : error instanceof Error ? error.stack : String(error);
    process.stderr.write(`\n${text}\n`);
    process.exitCode = 1;
  }
}
