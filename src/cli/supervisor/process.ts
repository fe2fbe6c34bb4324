import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { CommandError, exitCode } from "../exit.ts";
import { nextRestart } from "./backoff.ts";
import { fromChild, type ToChild } from "./messages.ts";

export interface ProcessSpec {
  /** `gateway`, `daemon 1`, ...; goes before each line it prints. */
  readonly name: string;
  /** Arguments of the `sluice` command. `url` is where it listened before, so that a restart keeps its address. */
  readonly args: (url: URL | undefined) => readonly string[];
  /** Secrets go here, never into the arguments, which every user of the machine can read. */
  readonly env: Readonly<Record<string, string>>;
  readonly onProgress: (fraction: number) => void;
  readonly onLine: (line: string) => void;
  /** After a restart that the supervisor did on its own. */
  readonly onRestart: (url: string) => void;
  /** It died for good, or too often. */
  readonly onLost: (error: CommandError) => void;
}

/**
 * One process under supervision: starts it, starts it again when it dies (with growing waits, and not for ever), and ends
 * it. The child ends by itself when this process goes away, since its IPC channel closes.
 */
export class SupervisedProcess {
  readonly #spec: ProcessSpec;
  readonly #command: readonly string[];
  readonly #stopping = new AbortController();
  #child: ChildProcess | undefined;
  #url: URL | undefined;
  #deaths: number[] = [];

  /** @param command program and first arguments that run `sluice` in a process of its own */
  constructor(command: readonly string[], spec: ProcessSpec) {
    this.#command = command;
    this.#spec = spec;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  get url(): string | undefined {
    return this.#url?.origin;
  }

  /** Resolves with its address when it is ready. Throws a CommandError when the first start fails. */
  async start(): Promise<string> {
    const { child, ready } = this.#launch();
    const url = await ready;
    this.#url = new URL(url);
    this.#watch(child);
    return url;
  }

  /** Asks it to finish within `drainMs`; kills what is still there a little later. */
  async stop(drainMs: number): Promise<void> {
    this.#stopping.abort();
    const child = this.#child;
    if (child === undefined || hasEnded(child)) return;
    const ended = once(child, "exit");
    const message: ToChild = { type: "stop", drainMs };
    if (child.connected) child.send(message, () => {});
    else child.kill("SIGTERM");
    // The margin covers closing sockets and the model's memory; without a bound one stuck process would keep them all.
    const killer = setTimeoutSignal(drainMs + 5_000);
    killer.signal.addEventListener("abort", () => child.kill("SIGKILL"), { once: true });
    await ended;
    killer.cancel();
  }

  /** At once, without asking. */
  kill(): void {
    this.#stopping.abort();
    this.#child?.kill("SIGKILL");
  }

  #launch(): { readonly child: ChildProcess; readonly ready: Promise<string> } {
    const [program = process.execPath, ...first] = this.#command;
    const child = spawn(program, [...first, ...this.#spec.args(this.#url)], {
      env: { ...process.env, ...this.#spec.env, SLUICE_SUPERVISED: "1" },
      stdio: ["ignore", "pipe", "pipe", "ipc"],
    });
    this.#child = child;
    for (const stream of [child.stdout, child.stderr]) {
      if (stream !== null) createInterface({ input: stream }).on("line", this.#spec.onLine);
    }
    const { promise, resolve, reject } = Promise.withResolvers<string>();
    child.on("message", (raw) => {
      const message = fromChild.safeParse(raw);
      if (!message.success) return;
      if (message.data.type === "progress") this.#spec.onProgress(message.data.fraction);
      else if (message.data.type === "ready") resolve(message.data.url);
      else reject(new CommandError(`${this.#spec.name}: ${message.data.message}`, exitCode.unavailable));
    });
    child.once("error", (cause) =>
      reject(new CommandError(`${this.#spec.name} could not be started: ${cause.message}`)),
    );
    child.once("exit", (code, signal) => {
      reject(new CommandError(`${this.#spec.name} ended with ${signal ?? `exit code ${code}`} before it was ready`));
    });
    return { child, ready: promise };
  }

  #watch(child: ChildProcess): void {
    child.once("exit", (code, signal) => {
      if (this.#stopping.signal.aborted) return;
      this.#spec.onLine(`ended with ${signal ?? `exit code ${code}`}`);
      void this.#restart();
    });
    if (hasEnded(child) && !this.#stopping.signal.aborted) void this.#restart();
  }

  async #restart(): Promise<void> {
    for (;;) {
      this.#deaths.push(performance.now());
      const next = nextRestart(this.#deaths);
      if (next === "give_up") {
        this.#spec.onLost(new CommandError(`${this.#spec.name} keeps dying: giving up`));
        return;
      }
      try {
        await delay(next.waitMs, undefined, { signal: this.#stopping.signal });
      } catch {
        return;
      }
      const { child, ready } = this.#launch();
      try {
        const url = await ready;
        this.#url = new URL(url);
        this.#spec.onRestart(url);
        this.#watch(child);
        return;
      } catch (error) {
        if (this.#stopping.signal.aborted) return;
        this.#spec.onLine(error instanceof Error ? error.message : String(error));
      }
    }
  }
}

function hasEnded(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null;
}

/** A signal that aborts after `ms` unless cancelled; AbortSignal.timeout alone cannot be called off. */
function setTimeoutSignal(ms: number): { readonly signal: AbortSignal; cancel(): void } {
  const off = new AbortController();
  const fired = new AbortController();
  delay(ms, undefined, { signal: off.signal, ref: false }).then(
    () => fired.abort(),
    () => {},
  );
  return { signal: fired.signal, cancel: () => off.abort() };
}
