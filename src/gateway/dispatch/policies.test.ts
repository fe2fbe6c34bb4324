import { describe, expect, it } from "vitest";
import { virtualClock } from "../../../test/support/virtual-clock.ts";
import { configSchema } from "../../config/schema.ts";
import { SluiceError } from "../../errors.ts";
import { Breaker } from "./breaker.ts";
import { Deadlines } from "./deadlines.ts";
import { nextStep, type RetryInput } from "./retry.ts";
import { RetryBudget } from "./retry-budget.ts";

const failure = (changes: Partial<ConstructorParameters<typeof SluiceError>[0]> = {}) =>
  new SluiceError({
    status: 503,
    type: "server_error",
    code: "backend_unreachable",
    message: "x",
    retryable: true,
    ...changes,
  });

const defaults =
  configSchema.parse({
    models: { m: { pools: ["p"], tokenizer: "gguf:m" } },
    pools: { p: { backend: "daemon", endpoints: ["http://a:1"] } },
    tenants: {},
  }).models.m?.fallback.on ?? [];

describe("what follows a failed attempt", () => {
  const base: RetryInput = {
    error: failure(),
    attemptsLeft: 1,
    otherBackend: true,
    otherPool: true,
    fallbackOn: defaults,
    resuming: false,
    random: 0,
  };
  it.each([
    ["another backend, at once", {}, { kind: "elsewhere" }],
    ["another backend even where a hint says wait", { error: failure({ retryAfterMs: 9_000 }) }, { kind: "elsewhere" }],
    ["the next pool when attempts are spent", { attemptsLeft: 0 }, { kind: "next-pool" }],
    [
      "the next pool at once when this one lacks something",
      { error: failure({ code: "capability_missing" }) },
      { kind: "next-pool" },
    ],
    [
      "nobody, but not the end, when a part of the answer was sent",
      { attemptsLeft: 0, otherPool: false, resuming: true },
      { kind: "next-pool" },
    ],
    [
      "the next pool when one does not like an answer that another began",
      { resuming: true, error: failure({ status: 400, code: "invalid_value", retryable: false }) },
      { kind: "next-pool" },
    ],
    [
      "the caller when an answer is refused for its content, begun or not",
      { resuming: true, error: failure({ status: 400, code: "content_policy_violation", retryable: false }) },
      { kind: "give-up" },
    ],
    ["the caller when nothing is left", { attemptsLeft: 0, otherPool: false }, { kind: "give-up" }],
    ["the only backend again after a pause", { otherBackend: false }, { kind: "again", waitMs: 50 }],
    [
      "the only backend no sooner than it asked",
      { otherBackend: false, otherPool: false, error: failure({ retryAfterMs: 2_000 }) },
      { kind: "again", waitMs: 2_000 },
    ],
    [
      "the next pool rather than a wait",
      { otherBackend: false, error: failure({ retryAfterMs: 500 }) },
      { kind: "next-pool" },
    ],
    [
      "the caller when the hint is long",
      { otherBackend: false, otherPool: false, error: failure({ retryAfterMs: 60_000 }) },
      { kind: "give-up" },
    ],
    [
      "the next pool and not a silent backend again",
      { otherBackend: false, error: failure({ code: "backend_timeout", status: 504 }) },
      { kind: "next-pool" },
    ],
    ["the caller when no backend can mend it", { error: failure({ retryable: false }) }, { kind: "give-up" }],
    [
      "another pool when the prompt is too long for this one",
      { error: failure({ code: "context_length_exceeded", status: 400, retryable: false }) },
      { kind: "next-pool" },
    ],
  ] as const)("%s", (_, changes, step) => {
    expect(nextStep({ ...base, ...changes })).toEqual(step);
  });
});

describe("the retry budget", () => {
  it("allows a share of the requests beyond a small free rate", () => {
    const budget = new RetryBudget(0.1);
    for (let request = 0; request < 1000; request++) budget.request(request);
    const allowed = Array.from({ length: 400 }, () => budget.retry(1000)).filter(Boolean);
    expect(allowed).toHaveLength(200);
  });

  it("recovers as its window moves on", () => {
    const budget = new RetryBudget(0);
    while (budget.retry(0));
    expect(budget.retry(9_000)).toBe(false);
    expect(budget.retry(10_000)).toBe(true);
  });
});

describe("the breaker", () => {
  const config = { failures: 3, window: 1_000, probeAfter: 500 };
  const at = (now: number) => ({ now: () => now });

  it("opens after failures within the window and lets one probe through later", () => {
    const breaker = new Breaker(config);
    for (const now of [0, 100, 200]) breaker.begin(at(now)).failed();
    expect(breaker.admits(300)).toBe(false);
    expect(breaker.state(699)).toBe("open");
    expect(breaker.admits(700)).toBe(true);
    const probe = breaker.begin(at(700));
    expect(breaker.admits(700)).toBe(false);
    probe.succeeded();
    expect(breaker.state(700)).toBe("closed");
  });

  it("opens again when the probe fails, and waits anew", () => {
    const breaker = new Breaker(config);
    for (const now of [0, 1, 2]) breaker.begin(at(now)).failed();
    breaker.begin(at(600)).failed();
    expect(breaker.admits(1_099)).toBe(false);
    expect(breaker.admits(1_100)).toBe(true);
  });

  it("forgets failures older than the window, and all of them at a success", () => {
    const breaker = new Breaker(config);
    for (const now of [0, 100, 1_050]) breaker.begin(at(now)).failed();
    expect(breaker.state(1_050)).toBe("closed");
    breaker.begin(at(1_060)).succeeded();
    for (const now of [1_070, 1_080]) breaker.begin(at(now)).failed();
    expect(breaker.state(1_090)).toBe("closed");
  });

  it("gives the probe's place back when its caller left", () => {
    const breaker = new Breaker(config);
    for (const now of [0, 1, 2]) breaker.begin(at(now)).failed();
    breaker.begin(at(600)).neutral();
    expect(breaker.admits(601)).toBe(true);
  });
});

describe("deadlines", () => {
  async function watched() {
    const clock = virtualClock();
    const seen: Array<{ at: number; label: string }> = [];
    const deadlines = new Deadlines({
      clock,
      deadlines: { connect: 1, firstToken: 100, betweenTokens: 50, total: 1_000 },
      requestStartedAt: 0,
      expire: (error) => seen.push({ at: clock.now(), label: error.metricLabel }),
    });
    return { clock, deadlines, seen };
  }
  const token = { type: "tokens", ids: [1] } as const;

  it("fire when nothing comes", async () => {
    const { clock, seen } = await watched();
    await clock.advance(99);
    expect(seen).toEqual([]);
    await clock.advance(1);
    expect(seen).toEqual([{ at: 100, label: "timeout_first_token" }]);
  });

  it("count the first token from the last sign of life", async () => {
    const { clock, deadlines, seen } = await watched();
    await clock.advance(90);
    deadlines.event({ type: "accepted", cachedTokens: 0 });
    await clock.advance(90);
    deadlines.event({ type: "progress", prefilled: 10 });
    await clock.advance(99);
    expect(seen).toEqual([]);
    await clock.advance(1);
    expect(seen).toEqual([{ at: 280, label: "timeout_first_token" }]);
  });

  it("are shorter between tokens", async () => {
    const { clock, deadlines, seen } = await watched();
    await clock.advance(10);
    deadlines.event(token);
    await clock.advance(49);
    deadlines.event(token);
    await clock.advance(50);
    expect(seen).toEqual([{ at: 109, label: "timeout_between_tokens" }]);
  });

  it("end an answer that goes on for ever", async () => {
    const { clock, deadlines, seen } = await watched();
    while (clock.now() < 1_000) {
      deadlines.event(token);
      await clock.advance(40);
    }
    expect(seen).toEqual([{ at: 1_000, label: "timeout_total" }]);
  });

  it("do not fire once stopped", async () => {
    const { clock, deadlines, seen } = await watched();
    deadlines.stop();
    await clock.advance(5_000);
    expect(seen).toEqual([]);
  });
});
