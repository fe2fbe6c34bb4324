import { setTimeout as delay } from "node:timers/promises";

/** Waits `ms`; rejects with the signal's reason when it aborts first. Injected, so that tests need not wait. */
export type Pause = (ms: number, signal: AbortSignal) => Promise<void>;

/** Keeps the process alive, unlike the shared clock's sleep: a CLI that waits to try again must not end quietly. */
export const pause: Pause = async (ms, signal) => {
  try {
    await delay(ms, undefined, { signal });
  } catch (error) {
    throw signal.aborted ? signal.reason : error;
  }
};
