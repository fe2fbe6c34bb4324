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
  /**
   * Calls `action` once, `ms` from now; the function returned takes that back. For what each request has several of: a
   * sleep that is given up costs an error with its stack.
   */
  after(ms: number, action: () => void): () => void;
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
  after(ms, action) {
    const timer = setTimeout(action, ms);
    timer.unref?.();
    return () => clearTimeout(timer);
  },
};
