import { setImmediate } from "node:timers/promises";
import { parentPort, workerData } from "node:worker_threads";
import { Breaker } from "../../src/gateway/dispatch/breaker.ts";
import { RetryBudget } from "../../src/gateway/dispatch/retry-budget.ts";
import { type GateLimits, TenantGate } from "../../src/gateway/tenants/gate.ts";
import { GateBell, type GateMemory } from "../../src/gateway/tenants/gate-memory.ts";

/** A thread that contends with others for what all share, and says what it got. */
export type Contest =
  /** Takes and gives back places of one tenant, many at once. */
  | { readonly kind: "enter"; readonly memory: GateMemory; readonly limits: GateLimits; readonly tries: number }
  /** Lets many works wait for a place in preparation. */
  | { readonly kind: "prepare"; readonly memory: GateMemory; readonly limits: GateLimits; readonly tries: number }
  /** Begins attempts on a breaker that is half-open and ends them as failed. */
  | { readonly kind: "probe"; readonly words: Int32Array; readonly failures: number; readonly tries: number }
  | { readonly kind: "fail"; readonly words: Int32Array; readonly failures: number; readonly tries: number }
  | { readonly kind: "retry"; readonly words: Int32Array; readonly tries: number };

export interface Contender {
  readonly thread: number;
  readonly contest: Contest;
  /** [0]: threads that are about to begin; [1]: inside now; [2]: the most that ever were. */
  readonly watch: Int32Array;
  readonly threads: number;
}

const never = new AbortController().signal;

async function contend({ thread, contest, watch, threads }: Contender): Promise<number> {
  // All begin at once.
  Atomics.add(watch, 0, 1);
  Atomics.notify(watch, 0);
  for (let seen = Atomics.load(watch, 0); seen < threads; seen = Atomics.load(watch, 0)) Atomics.wait(watch, 0, seen);
  const inside = (): void => {
    const now = Atomics.add(watch, 1, 1) + 1;
    for (let most = Atomics.load(watch, 2); now > most; most = Atomics.load(watch, 2)) {
      Atomics.compareExchange(watch, 2, most, now);
    }
  };
  const outside = (): void => void Atomics.sub(watch, 1, 1);
  let got = 0;
  switch (contest.kind) {
    case "enter": {
      const { memory, limits, tries } = contest;
      const gate = new TenantGate({ memory, thread, slot: 5, bell: new GateBell(memory, thread) });
      const held: Array<() => void> = [];
      for (let turn = 0; turn < tries; turn++) {
        try {
          const leave = gate.enter(limits, 1 + (turn % 3));
          for (let place = 0; place <= turn % 3; place++) inside();
          held.push(() => {
            for (let place = 0; place <= turn % 3; place++) outside();
            leave();
          });
          got++;
        } catch {
          held.shift()?.();
        }
      }
      for (const leave of held) leave();
      return got;
    }
    case "prepare": {
      const { memory, limits, tries } = contest;
      const gate = new TenantGate({ memory, thread, slot: 5, bell: new GateBell(memory, thread) });
      const works = Array.from({ length: tries }, () =>
        gate.prepare(limits, never, async () => {
          inside();
          await setImmediate();
          outside();
          got++;
        }),
      );
      await Promise.all(works);
      return got;
    }
    case "probe": {
      const { words, failures, tries } = contest;
      const breaker = new Breaker({ failures, window: 1_000, probeAfter: 10 }, { words, thread });
      const clock = { now: () => 1_000_000 };
      for (let turn = 0; turn < tries; turn++) {
        if (!breaker.admits(clock.now())) continue;
        try {
          const permit = breaker.begin(clock);
          inside();
          got++;
          outside();
          permit.neutral();
        } catch {
          // Another thread's probe came first.
        }
      }
      return got;
    }
    case "fail": {
      const { words, failures, tries } = contest;
      const breaker = new Breaker({ failures, window: 1_000, probeAfter: 1_000 }, { words, thread });
      for (let turn = 0; turn < tries; turn++) breaker.begin({ now: () => 100 }).failed();
      return tries;
    }
    case "retry": {
      const budget = new RetryBudget(0.1, contest.words);
      for (let turn = 0; turn < contest.tries; turn++) budget.request(turn % 1_000);
      for (let turn = 0; turn < contest.tries; turn++) if (budget.retry(999)) got++;
      return got;
    }
  }
}

// A pending Atomics.waitAsync does not keep a thread alive; in a gateway its server does.
parentPort?.on("message", () => {});
parentPort?.postMessage(await contend(workerData as Contender));
