import { setImmediate } from "node:timers/promises";
import type { Clock } from "../../src/clock.ts";

export interface VirtualClock extends Clock {
  /** Lets `ms` pass: due sleepers wake in order, and what they start runs before the next one wakes. */
  advance(ms: number): Promise<void>;
}

export function virtualClock(): VirtualClock {
  let now = 0;
  const sleepers = new Set<{ readonly at: number; wake(): void }>();
  // Promise chains and sockets of what woke up settle within a few turns of the event loop.
  const settle = async () => {
    for (let turn = 0; turn < 5; turn++) await setImmediate();
  };
  return {
    now: () => now,
    sleep(ms, signal) {
      return new Promise((resolve, reject) => {
        if (signal.aborted) return reject(signal.reason);
        const sleeper = {
          at: now + ms,
          wake() {
            signal.removeEventListener("abort", abort);
            resolve();
          },
        };
        const abort = () => {
          sleepers.delete(sleeper);
          reject(signal.reason);
        };
        signal.addEventListener("abort", abort, { once: true });
        sleepers.add(sleeper);
      });
    },
    after(ms, action) {
      const sleeper = { at: now + ms, wake: action };
      sleepers.add(sleeper);
      return () => void sleepers.delete(sleeper);
    },
    async advance(ms) {
      const end = now + ms;
      await settle();
      for (;;) {
        const due = [...sleepers].filter(({ at }) => at <= end).toSorted((a, b) => a.at - b.at)[0];
        if (due === undefined) break;
        now = Math.max(now, due.at);
        sleepers.delete(due);
        due.wake();
        await settle();
      }
      now = end;
    },
  };
}
