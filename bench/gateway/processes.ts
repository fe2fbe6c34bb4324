import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, readdirSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { request } from "undici";

/** The processes of the benchmark, each held to one core, and what the kernel says of them. Linux only. */

const ticksPerSecond = 100;

export interface Spawned {
  readonly child: ChildProcess;
  readonly pid: number;
}

const alive = new Set<ChildProcess>();
process.once("exit", () => {
  for (const child of alive) child.kill("SIGKILL");
});

/** Starts `program` on one core. Its output goes to `logFile`, as a service's does; `ipc` for our own programs. */
export function start(
  program: string,
  args: readonly string[],
  options: {
    readonly core: number;
    readonly logFile: string;
    readonly ipc?: boolean;
    readonly env?: NodeJS.ProcessEnv;
  },
): Spawned {
  const log = openSync(options.logFile, "w");
  const child = spawn("taskset", ["-c", String(options.core), program, ...args], {
    stdio: ["ignore", log, log, ...(options.ipc === true ? (["ipc"] as const) : [])],
    env: { ...process.env, ...options.env },
  });
  closeSync(log);
  alive.add(child);
  child.once("exit", () => alive.delete(child));
  if (child.pid === undefined) throw new Error(`${program} could not be started`);
  // taskset becomes the program: same process.
  return { child, pid: child.pid };
}

export async function end({ child }: Spawned): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, "exit");
  child.kill("SIGTERM");
  const late = new AbortController();
  void sleep(5_000, undefined, { signal: late.signal }).then(
    () => child.kill("SIGKILL"),
    () => {},
  );
  await exited;
  late.abort();
}

/** The next message of one of our own programs. Rejects when the process ends first. */
export async function message<T>({ child }: Spawned): Promise<T> {
  const done = new AbortController();
  const { signal } = done;
  try {
    return await Promise.race([
      once(child, "message", { signal }).then(([value]) => value as T),
      once(child, "exit", { signal }).then(([code]) => {
        throw new Error(`a process of the benchmark ended with code ${String(code)}`);
      }),
    ]);
  } finally {
    done.abort();
  }
}

export async function untilAnswers(url: string, what: Spawned, logFile: string, seconds = 60): Promise<void> {
  const until = performance.now() + seconds * 1_000;
  for (;;) {
    const ended = what.child.exitCode !== null || what.child.signalCode !== null;
    if (ended || performance.now() > until) {
      throw new Error(`no answer from ${url}; its output ends:\n${readFileSync(logFile, "utf8").slice(-2_000)}`);
    }
    try {
      const { statusCode, body } = await request(url, { headersTimeout: 1_000 });
      await body.dump();
      if (statusCode === 200) return;
    } catch {
      // Not listening yet.
    }
    await sleep(200);
  }
}

/** A process and all its descendants. */
function tree(pid: number): number[] {
  const parents = new Map<number, number>();
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const fields = stat(`/proc/${name}/stat`);
    if (fields !== undefined) parents.set(Number(name), Number(fields[1]));
  }
  const found = [pid];
  for (const one of found) for (const [child, parent] of parents) if (parent === one) found.push(child);
  return found;
}

/** The fields behind the command's name, which may hold anything; undefined for a process that is gone. */
function stat(file: string): string[] | undefined {
  try {
    const text = readFileSync(file, "utf8");
    return text.slice(text.lastIndexOf(")") + 2).split(" ");
  } catch {
    return undefined;
  }
}

export interface Cpu {
  /** utime + stime of /proc/PID/stat, all threads: ticks of 10 ms. */
  readonly statMs: number;
  /** The scheduler's own count of the threads that live now, in nanoseconds there. */
  readonly schedMs: number;
}

/** CPU time of a process and its descendants so far, user and system. */
export function cpuOf(pid: number): Cpu {
  let statMs = 0;
  let schedMs = 0;
  for (const one of tree(pid)) {
    const fields = stat(`/proc/${one}/stat`);
    if (fields === undefined) continue;
    statMs += ((Number(fields[11]) + Number(fields[12])) * 1_000) / ticksPerSecond;
    for (const thread of readdirSync(`/proc/${one}/task`)) {
      const text = readFileSync(`/proc/${one}/task/${thread}/schedstat`, "utf8");
      schedMs += Number(text.split(" ")[0]) / 1e6;
    }
  }
  return { statMs, schedMs };
}

/** Resident memory of a process and its descendants, MB. */
export function residentMb(pid: number): number {
  let pages = 0;
  for (const one of tree(pid)) pages += Number(readFileSync(`/proc/${one}/statm`, "utf8").split(" ")[1]);
  return (pages * 4096) / 1e6;
}

/**
 * The scheduler's count is exact but loses threads that ended; the other one is coarse and keeps them. Beyond its
 * coarseness the larger one is right.
 */
export function cpuBetween(before: Cpu, after: Cpu): number {
  const sched = after.schedMs - before.schedMs;
  const stat = after.statMs - before.statMs;
  return stat - sched > 50 ? stat : sched;
}
