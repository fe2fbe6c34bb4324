import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

export interface DaemonProcess {
  readonly url: string;
  /** SIGKILL: no drain, no goodbye. Resolves when the process is gone. */
  kill(): Promise<void>;
  /** The process stands still, as a machine in trouble does; its sockets stay open. */
  freeze(): void;
}

/** A daemon without a model: fast, and its step time is the test's to choose. */
export const startHashDaemon = (args: readonly string[] = []) => start("./hash-daemon.ts", args);

export interface NativeDaemonOptions {
  /** That of one that was killed, to take its place; 0 = a free one. */
  readonly port?: number;
  /** At most one token of each answer in so many milliseconds. */
  readonly paceMs?: number;
  /** Of each answer so many tokens are told and nothing after them, as if the engine stood still. */
  readonly tokensTold?: number;
}

/** A daemon with the real engine on one thread. */
export const startNativeDaemon = (
  model: string,
  { port = 0, paceMs = 0, tokensTold = Number.POSITIVE_INFINITY }: NativeDaemonOptions = {},
) =>
  start("./native-daemon.ts", [
    ...["--model", model, "--port", `${port}`],
    ...["--pace-ms", `${paceMs}`, "--tokens-told", `${tokensTold}`],
  ]);

/** Starts a daemon in a process of its own and resolves when it has produced a token and listens. */
async function start(script: string, args: readonly string[]): Promise<DaemonProcess> {
  const path = fileURLToPath(new URL(script, import.meta.url));
  const child = spawn(process.execPath, [path, ...args], { stdio: ["ignore", "pipe", "inherit"] });
  const url = await firstLine(child);
  return {
    url,
    async kill() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      const exited = once(child, "exit");
      child.kill("SIGKILL");
      await exited;
    },
    freeze() {
      child.kill("SIGSTOP");
    },
  };
}

async function firstLine(child: ChildProcess): Promise<string> {
  if (child.stdout === null) throw new Error("the daemon has no output");
  for await (const line of createInterface({ input: child.stdout })) return line;
  throw new Error("the daemon ended before it listened");
}
