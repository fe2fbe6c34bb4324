import { once } from "node:events";
import { Worker } from "node:worker_threads";
import { expect, it, vi } from "vitest";
import { Breaker, breakerWords, forgetProbeOf } from "../../src/gateway/dispatch/breaker.ts";
import { budgetWords } from "../../src/gateway/dispatch/retry-budget.ts";
import { forgetLoadOf, LoadLedger, ledgerBytes } from "../../src/gateway/routing/ledger.ts";
import { BackendRates, ratesBytes } from "../../src/gateway/routing/rates.ts";
import { Slots } from "../../src/gateway/routing/slots.ts";
import { TenantGate } from "../../src/gateway/tenants/gate.ts";
import { forgetGatesOf, GateBell, gateMemory, SharedCount } from "../../src/gateway/tenants/gate-memory.ts";
import type { Contender, Contest } from "./contender.ts";

vi.setConfig({ testTimeout: 120_000 });

const threads = 3;
const shared = (words: number) => new Int32Array(new SharedArrayBuffer(words * 4));

/** What each thread got, and the most that were inside at once. */
async function contest(given: Contest): Promise<{ readonly got: readonly number[]; readonly most: number }> {
  const watch = shared(3);
  const got = await Promise.all(
    Array.from({ length: threads }, async (_, thread) => {
      const workerData: Contender = { thread, contest: given, watch, threads };
      const worker = new Worker(new URL("./contender.ts", import.meta.url), { workerData, execArgv: [] });
      const [count] = await once(worker, "message");
      await worker.terminate();
      return Number(count);
    }),
  );
  return { got, most: watch[2] ?? 0 };
}

const limits = { preparing: 2, waiting: 1_000, concurrency: 7, bytes: 100 };
const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);

it("a tenant's places are never exceeded, and all are free in the end", async () => {
  const memory = gateMemory(threads);
  const { got, most } = await contest({ kind: "enter", memory, limits, tries: 50_000 });
  expect(Math.min(...got)).toBeGreaterThan(0);
  expect(most).toBeLessThanOrEqual(7);
  expect(SharedCount.shared(memory, 5, 0, 0).total).toBe(0);
});

it("whoever waits to be prepared gets a turn, in whatever thread, and never more than the bound at once", async () => {
  const memory = gateMemory(threads);
  const { got, most } = await contest({ kind: "prepare", memory, limits, tries: 300 });
  expect(got).toEqual([300, 300, 300]);
  expect(most).toBeLessThanOrEqual(2);
  for (let which = 0; which < 4; which++) expect(SharedCount.shared(memory, 5, 0, which).total).toBe(0);
});

it("too many that wait are turned away, those of all threads counted", async () => {
  const memory = gateMemory(2);
  const [here, there] = [0, 1].map(
    (thread) => new TenantGate({ memory, thread, slot: 0, bell: new GateBell(memory, thread) }),
  );
  const one = { ...limits, preparing: 1, waiting: 1 };
  const first = Promise.withResolvers<void>();
  const never = new AbortController().signal;
  const running = here?.prepare(one, never, () => first.promise);
  const waits = there?.prepare(one, never, async () => "there");
  await expect(here?.prepare(one, never, async () => "here")).rejects.toMatchObject({ code: "too_many_preparing" });
  first.resolve();
  await running;
  await expect(waits).resolves.toBe("there");
});

it("a thread that died holds nothing, and who waited for it goes on", async () => {
  const memory = gateMemory(2);
  const [dead, alive] = [0, 1].map(
    (thread) => new TenantGate({ memory, thread, slot: 0, bell: new GateBell(memory, thread) }),
  );
  dead?.enter(limits, 7);
  expect(() => alive?.enter(limits)).toThrow();
  const never = new AbortController().signal;
  void dead?.prepare({ ...limits, preparing: 1 }, never, () => new Promise(() => {}));
  const waits = alive?.prepare({ ...limits, preparing: 1 }, never, async () => "went on");
  forgetGatesOf(0, memory, 1);
  await expect(waits).resolves.toBe("went on");
  alive?.enter(limits, 7);
});

it("one thread at a time probes a backend whose breaker is half-open", async () => {
  const words = shared(breakerWords);
  const breaker = new Breaker({ failures: 1, window: 1_000, probeAfter: 10 }, { words, thread: 0 });
  breaker.begin({ now: () => 0 }).failed();
  const { got, most } = await contest({ kind: "probe", words, failures: 1, tries: 100_000 });
  expect(sum(got)).toBeGreaterThan(0);
  expect(most).toBe(1);
  expect(breaker.admits(1_000_000)).toBe(true);
});

it("a probe of a thread that died does not keep the others from trying", () => {
  const words = shared(breakerWords);
  const [dead, alive] = [0, 1].map((thread) => {
    return new Breaker({ failures: 1, window: 1_000, probeAfter: 10 }, { words, thread });
  });
  dead?.begin({ now: () => 0 }).failed();
  dead?.begin({ now: () => 100 });
  expect(alive?.admits(100)).toBe(false);
  expect(() => alive?.begin({ now: () => 100 })).toThrow(expect.objectContaining({ code: "breaker_probing" }));
  forgetProbeOf(0, words);
  expect(alive?.admits(100)).toBe(true);
});

it("failures of all threads open one breaker, each counted once", async () => {
  const words = shared(breakerWords);
  const config = { failures: 601, window: 1_000, probeAfter: 1_000 };
  await contest({ kind: "fail", words, failures: 601, tries: 200 });
  const breaker = new Breaker(config, { words, thread: 0 });
  expect(breaker.state(100)).toBe("closed");
  breaker.begin({ now: () => 100 }).failed();
  expect(breaker.state(100)).toBe("open");
});

it("retries of all threads come out of one budget", async () => {
  const words = shared(budgetWords);
  const { got } = await contest({ kind: "retry", words, tries: 2_000 });
  // 100 are free, and a tenth of 6,000 requests; two threads that want the last one may leave it.
  expect(sum(got)).toBeLessThanOrEqual(700);
  expect(sum(got)).toBeGreaterThan(600);
});

it("load and speeds are what all threads know together, without those that died", () => {
  const slots = new Slots();
  const [load, rates] = [ledgerBytes(2), ratesBytes(2)].map((bytes) => new SharedArrayBuffer(bytes));
  const ledgers = [0, 1].map((thread) => new LoadLedger({ slots, thread, ...(load && { memory: load }) }));
  const entry = ledgers[0]?.pick("a", 100);
  ledgers[1]?.pick("a", 50);
  expect(ledgers.map((ledger) => ledger.loadOf("a"))).toEqual(
    [1, 2].map(() => ({ pendingPrefillTokens: 150, activeRows: 2 })),
  );
  if (load !== undefined) forgetLoadOf(1, load);
  entry?.remaining(10);
  expect(ledgers[1]?.loadOf("a")).toEqual({ pendingPrefillTokens: 10, activeRows: 1 });

  const learned = [0, 1].map((thread) => new BackendRates({ slots, thread, ...(rates && { memory: rates }) }));
  const sample = { prefillTokens: 400, prefillMs: 100, decodeTokens: 0, decodeMs: 0, rows: 1 };
  learned[0]?.observe("a", sample);
  learned[1]?.observe("a", { ...sample, prefillMs: 50 });
  for (const each of learned) expect(each.of("a", ["a"]).prefillRate).toBeCloseTo(6);
});
