import { randomUUID } from "node:crypto";
import { open, readFile, rename, rm, stat, utimes } from "node:fs/promises";
import { hostname } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";
import { errorCode, modelFault } from "./fault.ts";
import type { Pause } from "./pause.ts";

const ownerSchema = z.object({ pid: z.number().int().positive(), host: z.string(), token: z.string() });
type Owner = z.output<typeof ownerSchema>;

const POLL_MS = 200;
/** The holder touches its file this often ... */
const HEARTBEAT_MS = 10_000;
/** ... and one not touched for this long has lost its holder, wherever that ran (shared home folders). */
const STALE_MS = 60_000;

export interface LockOptions {
  readonly pause: Pause;
  readonly signal: AbortSignal;
  /** Told once when another process holds the lock. */
  readonly onWait: () => void;
}

/**
 * Runs `work` while holding the lock file `path`, so that two processes do not bring the same file twice. Waits for the
 * holder; takes over from one that died. Node has no flock: the file is made exclusively and names its owner.
 */
export async function withFileLock<Result>(
  path: string,
  options: LockOptions,
  work: () => Promise<Result>,
): Promise<Result> {
  const token = randomUUID();
  let told = false;
  while (!(await acquire(path, token))) {
    if (!told) options.onWait();
    told = true;
    if (!(await removeIfStale(path))) await options.pause(POLL_MS, options.signal);
  }
  const beat = new AbortController();
  const beating = heartbeat(path, beat.signal);
  try {
    return await work();
  } finally {
    beat.abort();
    await beating;
    if ((await readOwner(path))?.token === token) await rm(path, { force: true });
  }
}

async function acquire(path: string, token: string): Promise<boolean> {
  const owner: Owner = { pid: process.pid, host: hostname(), token };
  try {
    const file = await open(path, "wx", 0o600);
    try {
      await file.writeFile(JSON.stringify(owner));
    } finally {
      await file.close();
    }
    return true;
  } catch (error) {
    if (errorCode(error) === "EEXIST") return false;
    throw modelFault("model_lock_failed", `the lock ${path} cannot be made`, { cause: error });
  }
}

/** True when a dead holder's lock was taken away. */
async function removeIfStale(path: string): Promise<boolean> {
  const owner = await readOwner(path);
  const age = await stat(path).then(
    ({ mtimeMs }) => Date.now() - mtimeMs,
    () => 0,
  );
  if (age < STALE_MS && (owner === undefined || owner.host !== hostname() || isAlive(owner.pid))) return false;
  // Of several waiters one gets the file; the others fail on the rename and go on waiting.
  const aside = `${path}.${randomUUID()}`;
  const taken = await rename(path, aside).then(
    () => true,
    () => false,
  );
  if (!taken) return false;
  // Between the look and the rename a new holder may have come: its lock goes back.
  const removed = await readOwner(aside);
  if (removed?.token !== owner?.token) {
    await rename(aside, path).catch(() => undefined);
    return false;
  }
  await rm(aside, { force: true });
  return true;
}

async function heartbeat(path: string, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    await delay(HEARTBEAT_MS, undefined, { signal, ref: false }).catch(() => undefined);
    if (signal.aborted) return;
    const now = new Date();
    await utimes(path, now, now).catch(() => undefined);
  }
}

async function readOwner(path: string): Promise<Owner | undefined> {
  try {
    return ownerSchema.parse(JSON.parse(await readFile(path, "utf8")));
  } catch {
    return undefined;
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return errorCode(error) === "EPERM";
  }
}
