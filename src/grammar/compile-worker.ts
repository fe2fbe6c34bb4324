import { type ChildProcess, fork } from "node:child_process";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { SluiceError, unavailable } from "../errors.ts";
import type { FromChild, ToChild } from "./child-protocol.ts";

export type StartMessage = Extract<ToChild, { type: "start" }>;

const START_TIMEOUT_MS = 30_000;

/** Why a job ended without an answer of its own: over its budget of time or memory, silent, or dead. */
export type WorkerFault = "time" | "memory" | "late" | "crash";

export class WorkerFailure extends Error {
  override readonly name = "WorkerFailure";
  readonly fault: WorkerFault;

  constructor(fault: WorkerFault) {
    super(`compile child: ${fault}`);
    this.fault = fault;
  }
}

/**
 * The parent's side of one compile child. Starts it when the first job comes and again after it died. One job at a time;
 * the owner sees to that.
 */
export class CompileWorker {
  private readonly start: StartMessage;
  private child: ChildProcess | undefined;

  constructor(start: StartMessage) {
    this.start = start;
  }

  /** The process id while a child lives; for tests and diagnostics. */
  get pid(): number | undefined {
    return this.child?.pid;
  }

  /** Sends one message and waits for its answer. Rejects with WorkerFailure; the child is gone then. */
  async ask(message: ToChild, timeoutMs: number): Promise<FromChild> {
    if (this.child === undefined || this.child.exitCode !== null) {
      this.child = this.spawn();
      const ready = await this.exchange(this.start, START_TIMEOUT_MS);
      if (ready.type !== "ready") throw new WorkerFailure("crash");
    }
    return this.exchange(message, timeoutMs);
  }

  /** Ends the child at once. */
  kill(): void {
    this.child?.kill("SIGKILL");
    this.child = undefined;
  }

  private spawn(): ChildProcess {
    const child = fork(fileURLToPath(new URL("./xgrammar-child.ts", import.meta.url)), [], {
      serialization: "advanced",
      stdio: ["ignore", "ignore", "inherit", "ipc"],
      execArgv: ["--disable-warning=ExperimentalWarning"],
      // The child reads what callers send: it gets no secret of ours.
      env: {},
    });
    // A failure that comes while no job waits shows at the next one.
    child.on("error", () => undefined);
    child.unref();
    child.channel?.unref();
    return child;
  }

  private async exchange(message: ToChild, timeoutMs: number): Promise<FromChild> {
    const { child } = this;
    if (child === undefined) throw new WorkerFailure("crash");
    const ended = new AbortController();
    // Referenced while a job runs: a process with nothing else to do waits for its answer.
    child.ref();
    child.channel?.ref();
    const answer = Promise.withResolvers<FromChild>();
    const onMessage = (answered: FromChild) => {
      if (answered.type === "over") answer.reject(new WorkerFailure(answered.budget));
      else answer.resolve(answered);
    };
    // 0 = it went for its size when it had nothing to do, as this job was on its way.
    const onExit = (code: number | null) => answer.reject(new WorkerFailure(code === 0 ? "late" : "crash"));
    child.on("message", onMessage);
    child.on("exit", onExit);
    const onError = () => answer.reject(new WorkerFailure("crash"));
    child.on("error", onError);
    const timer = delay(timeoutMs, undefined, { signal: ended.signal }).then(
      () => answer.reject(new WorkerFailure("late")),
      () => undefined,
    );
    try {
      if (child.exitCode !== null || child.signalCode !== null) throw new WorkerFailure("crash");
      child.send(message, (error) => {
        if (error !== null) answer.reject(new WorkerFailure("crash"));
      });
      return await answer.promise;
    } catch (error) {
      if (this.child === child) this.kill();
      throw error;
    } finally {
      ended.abort();
      await timer;
      child.off("message", onMessage);
      child.off("exit", onExit);
      child.off("error", onError);
      child.unref();
      child.channel?.unref();
    }
  }
}

/** What a caller is told when the child did not survive its schema. */
export function failureError(fault: WorkerFault, cpuMs: number, param: string): SluiceError {
  if (fault === "late") {
    return unavailable(
      "grammar_compiler_busy",
      "The grammar compiler did not come to this request's grammar in time.",
      {
        retryAfterMs: cpuMs,
      },
    );
  }
  if (fault === "crash") {
    return new SluiceError({
      status: 500,
      type: "server_error",
      code: "grammar_compiler_failed",
      message: "The grammar compiler failed on this request.",
      param,
    });
  }
  const message =
    fault === "time"
      ? `The grammar takes longer to compile than the limit of ${cpuMs / 1000} s.`
      : "The grammar needs more memory to compile than the limit.";
  return new SluiceError({ status: 400, type: "invalid_request_error", code: "schema_too_complex", message, param });
}
