import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { type FSWatcher, watch } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { z } from "zod";

/** `sluice up` as a user runs it: a process of its own, found through its ready file. */

const readyFile = z.strictObject({
  url: z.url(),
  key: z.string().min(16),
  model: z.string(),
  pids: z.strictObject({ supervisor: z.int(), gateway: z.int(), daemons: z.array(z.int()) }),
});
export type Ready = z.output<typeof readyFile>;

export interface Up {
  readonly ready: Ready;
  readonly process: ChildProcess;
  /** Milliseconds from the start of the process to the ready file. */
  readonly startMs: number;
  readonly stdout: () => string;
  readonly stderr: () => string;
  readonly readyPath: string;
  /** Sends the signal and resolves with the exit code when the process has ended. */
  end(signal?: NodeJS.Signals): Promise<number | null>;
}

const root = fileURLToPath(new URL("../../", import.meta.url));
export const launcher = join(root, "bin", "sluice.mjs");

/** Starts `sluice up --port 0 ARGS` and resolves when a token was produced. Rejects with its output when it ends before. */
export async function startUp(args: readonly string[] = [], env: NodeJS.ProcessEnv = {}): Promise<Up> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-up-"));
  const readyPath = join(folder, "ready.json");
  const started = performance.now();
  const child = spawn(process.execPath, [launcher, "up", "--port", "0", "--ready-file", readyPath, ...args], {
    env: { ...process.env, SLUICE_HOME: process.env.SLUICE_HOME ?? join(root, ".sluice"), ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const output = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) {
    child[name].setEncoding("utf8").on("data", (text: string) => {
      output[name] += text;
    });
  }
  const exited = once(child, "exit");
  await appearance(folder, "ready.json", exited).catch((error: unknown) => {
    child.kill("SIGKILL");
    throw new Error(`sluice up ended early:\n${output.stdout}\n${output.stderr}`, { cause: error });
  });
  const ready = readyFile.parse(JSON.parse(await readFile(readyPath, "utf8")));
  return {
    ready,
    process: child,
    startMs: performance.now() - started,
    stdout: () => output.stdout,
    stderr: () => output.stderr,
    readyPath,
    async end(signal = "SIGINT") {
      if (child.exitCode === null && child.signalCode === null) {
        child.kill(signal);
        await exited;
      }
      await rm(folder, { recursive: true, force: true });
      return child.exitCode;
    },
  };
}

/** Resolves when the file appears (it comes by a rename, whole); rejects when the process ends first. */
async function appearance(folder: string, name: string, exited: Promise<unknown>): Promise<void> {
  let watcher: FSWatcher | undefined;
  try {
    const appeared = new Promise<void>((resolve) => {
      watcher = watch(folder, (_, file) => {
        if (file === name) resolve();
      });
    });
    const ended = exited.then(() => {
      throw new Error("exited");
    });
    await Promise.race([appeared, ended]);
  } finally {
    watcher?.close();
  }
}

/** True while a process of this id runs. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

/** Runs `sluice ARGS` to its end. */
export async function sluice(
  args: readonly string[],
  options: { readonly env?: NodeJS.ProcessEnv; readonly cwd?: string } = {},
): Promise<{ readonly code: number | null; readonly stdout: string; readonly stderr: string }> {
  const child = spawn(process.execPath, [launcher, ...args], {
    cwd: options.cwd,
    env: { ...process.env, SLUICE_HOME: process.env.SLUICE_HOME ?? join(root, ".sluice"), ...options.env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let stdout = "";
  let stderr = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  await once(child, "close");
  return { code: child.exitCode, stdout, stderr };
}
