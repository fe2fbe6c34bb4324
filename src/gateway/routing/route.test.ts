import { describe, expect, it } from "vitest";
import { predictMs } from "./cost.ts";
import { LoadLedger } from "./ledger.ts";
import { BackendRates } from "./rates.ts";
import { type Candidate, type RouteInput, rank } from "./route.ts";

const rates = { prefillRate: 2, decodeMsPerRow: 5 };
const idle = { pendingPrefillTokens: 0, activeRows: 0 };
const candidate = (id: string, changes: Partial<Candidate> = {}): Candidate => ({
  id,
  excluded: undefined,
  matchedBlocks: 0,
  load: idle,
  rates,
  ...changes,
});
const input = (candidates: readonly Candidate[], changes: Partial<RouteInput> = {}): RouteInput => ({
  promptTokens: 1000,
  blockSize: 16,
  expectedTokens: 100,
  affinityKey: 12345,
  candidates,
  ...changes,
});

describe("the predicted cost", () => {
  it.each([
    ["an idle backend, nothing cached", idle, 1000, 64, 1000],
    ["everything cached but the last token", idle, 1, 64, 1],
    ["prefill that waits counts once", { pendingPrefillTokens: 500, activeRows: 0 }, 1000, 64, 1250],
    ["each row adds its toll on every expected token", { pendingPrefillTokens: 0, activeRows: 2 }, 1000, 10, 1100],
    ["long answers count up to a bound", { pendingPrefillTokens: 0, activeRows: 1 }, 1000, 10_000, 1320],
  ])("%s", (_, load, uncachedTokens, expectedTokens, ms) => {
    expect(predictMs({ load, rates, uncachedTokens, expectedTokens })).toBeCloseTo(ms);
  });
});

describe("the choice", () => {
  it.each([
    ["goes to the backend that holds the prefix", [candidate("a"), candidate("b", { matchedBlocks: 40 })], "b"],
    [
      "leaves the prefix behind where more prefill waits than it would save",
      [candidate("a"), candidate("b", { matchedBlocks: 20, load: { pendingPrefillTokens: 2000, activeRows: 3 } })],
      "a",
    ],
    [
      "stays with the prefix behind a short queue",
      [candidate("a"), candidate("b", { matchedBlocks: 50, load: { pendingPrefillTokens: 500, activeRows: 1 } })],
      "b",
    ],
    [
      "goes to the fewer pending tokens",
      [candidate("a", { load: { pendingPrefillTokens: 100, activeRows: 0 } }), candidate("b")],
      "b",
    ],
    [
      "goes to the fewer rows",
      [candidate("a", { load: { pendingPrefillTokens: 0, activeRows: 1 } }), candidate("b")],
      "b",
    ],
    ["goes to the faster machine", [candidate("a"), candidate("b", { rates: { ...rates, prefillRate: 4 } })], "b"],
    [
      "passes over the excluded",
      [candidate("a", { excluded: "breaker is open", matchedBlocks: 62 }), candidate("b")],
      "b",
    ],
    [
      "takes the longer prefix in a draw",
      [candidate("a", { rates: { ...rates, prefillRate: 2.06 } }), candidate("b", { matchedBlocks: 1 })],
      "b",
    ],
  ])("%s", (_, candidates, best) => {
    expect(rank(input(candidates))[0]?.backend).toBe(best);
    expect(rank(input(candidates.toReversed()))[0]?.backend).toBe(best);
  });

  it("lists the excluded last, with the reason", () => {
    const ranked = rank(
      input([
        candidate("a", { excluded: "draining" }),
        candidate("b"),
        candidate("c", { load: { pendingPrefillTokens: 9, activeRows: 9 } }),
      ]),
    );
    expect(ranked.map(({ backend }) => backend)).toEqual(["b", "c", "a"]);
    expect(ranked[2]?.excluded).toBe("draining");
  });

  it("is repeatable, and spreads prefixes over an idle fleet", () => {
    const fleet = ["a", "b", "c", "d"].map((id) => candidate(id));
    const chosen = Array.from({ length: 400 }, (_, index) => {
      const affinityKey = index * 7_919 + 2 ** 40;
      const best = rank(input(fleet, { affinityKey }))[0]?.backend;
      expect(rank(input(fleet.toReversed(), { affinityKey }))[0]?.backend).toBe(best);
      return best;
    });
    for (const id of ["a", "b", "c", "d"]) {
      const share = chosen.filter((best) => best === id).length;
      expect(share).toBeGreaterThan(60);
      expect(share).toBeLessThan(140);
    }
  });

  it("moves only the prefixes of a backend that left", () => {
    const fleet = ["a", "b", "c", "d"].map((id) => candidate(id));
    for (let index = 0; index < 100; index++) {
      const affinityKey = index * 104_729;
      const before = rank(input(fleet, { affinityKey }))[0]?.backend;
      const after = rank(input(fleet.slice(0, 3), { affinityKey }))[0]?.backend;
      if (before !== "d") expect(after).toBe(before);
    }
  });
});

describe("the ledger", () => {
  it("counts a pick at once, so that a burst spreads", () => {
    const ledger = new LoadLedger();
    const picks = Array.from({ length: 6 }, () => {
      const fleet = ["a", "b", "c"].map((id) => candidate(id, { load: ledger.loadOf(id) }));
      const best = rank(input(fleet))[0]?.backend ?? "";
      ledger.pick(best, 1000);
      return best;
    });
    expect(picks.toSorted()).toEqual(["a", "a", "b", "b", "c", "c"]);
  });

  it("follows a prefill, and forgets a generation wherever it ended", () => {
    const ledger = new LoadLedger();
    const entry = ledger.pick("a", 1000);
    ledger.pick("a", 50);
    entry.remaining(400);
    expect(ledger.loadOf("a")).toEqual({ pendingPrefillTokens: 450, activeRows: 2 });
    entry.settle();
    entry.settle();
    entry.remaining(999);
    expect(ledger.loadOf("a")).toEqual({ pendingPrefillTokens: 50, activeRows: 1 });
  });

  it("adds what a scrape shows beyond its own count, and never takes its own away", () => {
    const ledger = new LoadLedger();
    const entry = ledger.pick("a", 100);
    const scrape = { runningRows: 3, queuedRows: 1, pendingPrefillTokens: 700, freeKvTokens: 0 };
    ledger.correct("a", scrape);
    expect(ledger.loadOf("a")).toEqual({ pendingPrefillTokens: 700, activeRows: 4 });
    entry.settle();
    expect(ledger.loadOf("a")).toEqual({ pendingPrefillTokens: 600, activeRows: 3 });
    ledger.pick("a", 100);
    ledger.correct("a", { ...scrape, runningRows: 0, queuedRows: 0, pendingPrefillTokens: 0 });
    expect(ledger.loadOf("a")).toEqual({ pendingPrefillTokens: 100, activeRows: 1 });
  });
});

describe("learned rates", () => {
  const sample = { prefillTokens: 400, prefillMs: 100, decodeTokens: 10, decodeMs: 200, rows: 4 };

  it("follow a backend's own answers", () => {
    const learned = new BackendRates();
    learned.observe("a", sample);
    expect(learned.of("a", ["a"])).toEqual({ prefillRate: 4, decodeMsPerRow: 5 });
    for (let answer = 0; answer < 50; answer++) learned.observe("a", { ...sample, prefillMs: 50 });
    expect(learned.of("a", ["a"]).prefillRate).toBeCloseTo(8, 1);
  });

  it("stay near the peers' while answers are few", () => {
    const learned = new BackendRates();
    learned.observe("a", sample);
    learned.observe("b", { ...sample, prefillMs: 1000 });
    const { prefillRate } = learned.of("b", ["a", "b"]);
    expect(prefillRate).toBeCloseTo((0.4 + 4 * 2.2) / 5);
    expect(learned.of("c", ["a", "b", "c"]).prefillRate).toBeCloseTo(2.2);
  });

  it("ignore prefills too short to tell, and what was forgotten", () => {
    const learned = new BackendRates();
    learned.observe("a", { ...sample, prefillTokens: 20, prefillMs: 1000, decodeTokens: 1 });
    expect(learned.of("a", ["a"])).toEqual(new BackendRates().of("a", ["a"]));
    learned.observe("a", sample);
    learned.forget("a");
    expect(learned.of("a", ["a"])).toEqual(new BackendRates().of("a", ["a"]));
  });
});
