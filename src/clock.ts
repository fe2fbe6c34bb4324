import { setTimeout as delay } from "node:timers/promises";

/**
 * Time as a dependency, so that deadlines, breakers and TTLs are tested on a virtual clock. Milliseconds everywhere.
 * The gateway's platform clock has this shape and more.
 */
export interface Clock {
  /** Monotonic; only differences mean anything. */
  now(): number;
  /** Rejects with the signal's reason when it aborts first. */
  sleep(ms: number, signal: AbortSignal): Promise<void>;
}

/** The process's own timers (Node, and workerd under `nodejs_compat`). A pending sleep keeps no process alive. */
export const systemClock: Clock = {
  now: () => performance.now(),
  async sleep(ms, signal) {
    try {
      await delay(ms, undefined, { signal, ref: false });
    } catch (error) {
      throw signal.aborted ? signal.reason : error;
    }
  },
};
