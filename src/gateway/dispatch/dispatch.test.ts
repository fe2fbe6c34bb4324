import { afterEach, describe, expect, it } from "vitest";
import { poolsConfig, preparedRequest } from "../../../test/support/prepared.ts";
import { collect, tokensOf } from "../../../test/support/requests.ts";
import { accepted, answers, finish, scriptedBackends, silence, token } from "../../../test/support/scripted-backend.ts";
import { virtualClock } from "../../../test/support/virtual-clock.ts";
import { SluiceError, unavailable } from "../../errors.ts";
import { closeFleets, fleet, open } from "../../../test/support/fleet.ts";
import { createDispatcher, type Dispatcher } from "./dispatch.ts";

const never = new AbortController().signal;
afterEach(closeFleets);

const refused = () => unavailable("backend_unreachable", "refused");
const run = (dispatcher: Dispatcher, signal = never) => collect(dispatcher.dispatch(preparedRequest(), 0, signal));

describe("before the first token", () => {
  it("an attempt that fails is replaced within the pool, then by the next pool, unseen by the caller", async () => {
    const { dispatcher, all, backend, asked, ends } = await fleet();
    all(() => answers(accepted, refused()));
    backend("west/west-1:1").script = () => answers(accepted, token, finish);
    const events = await run(dispatcher);
    expect(tokensOf(events)).toEqual([7]);
    expect(
      events.filter(({ type }) => type === "attempt").map((event) => event.type === "attempt" && event.pool),
    ).toEqual(["east", "east", "west"]);
    expect(new Set(asked()).size).toBe(3);
    expect(ends).toEqual([{ attempts: 3, code: undefined }]);
  });

  it("every attempt has an id of its own and the same seed", async () => {
    const { dispatcher, clock, all, byId } = await fleet();
    all(() => answers(refused()));
    const answer = expect(run(dispatcher)).rejects.toMatchObject({ code: "backend_unreachable" });
    await clock.advance(1_000);
    await answer;
    const requests = [...byId.values()].flatMap((each) => each.requests);
    expect(requests).toHaveLength(4);
    expect(new Set(requests.map(({ id }) => id)).size).toBe(4);
    expect(new Set(requests.map(({ sampling }) => sampling.seed)).size).toBe(1);
  });

  it("an error that no other backend can mend goes to the caller at once", async () => {
    const { dispatcher, all, asked } = await fleet();
    all(() =>
      answers(
        new SluiceError({
          status: 400,
          type: "invalid_request_error",
          code: "content_policy_violation",
          message: "no",
        }),
      ),
    );
    await expect(run(dispatcher)).rejects.toMatchObject({ status: 400, code: "content_policy_violation" });
    expect(asked()).toHaveLength(1);
  });

  it("a prompt too long for one pool is tried once on the next", async () => {
    const { dispatcher, all, backend, asked } = await fleet();
    all(() =>
      answers(
        new SluiceError({
          status: 400,
          type: "invalid_request_error",
          code: "context_length_exceeded",
          message: "long",
        }),
      ),
    );
    backend("west/west-1:1").script = () => answers(token, finish);
    expect(tokensOf(await run(dispatcher))).toEqual([7]);
    expect(asked()).toHaveLength(2);
  });

  it("an error event of the backend counts as its failure", async () => {
    const { dispatcher, backend } = await fleet({ east: ["http://a:1", "http://b:1"] });
    const bad = () => answers(accepted, { type: "error", code: "engine_failed", message: "boom", retryable: true });
    const good = () => answers(accepted, token, finish);
    for (const [first, second] of [
      ["a", "b"],
      ["b", "a"],
    ] as const) {
      backend(`east/${first}:1`).script = bad;
      backend(`east/${second}:1`).script = good;
      expect(tokensOf(await run(dispatcher))).toEqual([7]);
    }
  });

  it("a silent backend is asked once; the next answers after the first-token deadline", async () => {
    const { dispatcher, clock, all, backend, asked, reports } = await fleet({
      east: ["http://a:1"],
      west: ["http://b:1"],
    });
    all((_, signal) => silence(signal));
    backend("west/b:1").script = () => answers(token, finish);
    const answer = run(dispatcher);
    await clock.advance(9_999);
    expect(asked()).toEqual(["east/a:1"]);
    await clock.advance(1);
    expect(tokensOf(await answer)).toEqual([7]);
    expect(reports.map(({ backend, error }) => [backend, error?.metricLabel])).toEqual([
      ["east/a:1", "timeout_first_token"],
      ["west/b:1", undefined],
    ]);
  });

  it("a full pool of one is asked again no sooner than it said", async () => {
    const { dispatcher, clock, backend, asked } = await fleet({ east: ["http://a:1"] });
    let calls = 0;
    backend("east/a:1").script = () =>
      calls++ === 0 ? answers(unavailable("queue_full", "full", { retryAfterMs: 2_000 })) : answers(token, finish);
    const answer = run(dispatcher);
    await clock.advance(1_999);
    expect(asked()).toHaveLength(1);
    await clock.advance(1);
    expect(tokensOf(await answer)).toEqual([7]);
  });

  it("when every backend is full the caller gets a 503 with a hint", async () => {
    const { dispatcher, all, clock } = await fleet();
    all(() => answers(unavailable("queue_full", "full", { retryAfterMs: 3_000 })));
    const answer = expect(run(dispatcher)).rejects.toMatchObject({
      status: 503,
      code: "queue_full",
      retryAfterMs: 3_000,
    });
    await clock.advance(0);
    await answer;
  });

  it("with no backend ready the caller gets a 503 with a hint, at once", async () => {
    const { dispatcher, clock, byId } = await fleet();
    for (const each of byId.values()) each.ready = false;
    await clock.advance(3_000);
    expect(dispatcher.ready()).toBe(false);
    await expect(run(dispatcher)).rejects.toMatchObject({ status: 503, code: "no_backend", retryAfterMs: 1_000 });
  });

  it("failures in a row take a backend out, and one probe brings it back", async () => {
    const { dispatcher, clock, backend, asked } = await fleet(
      { east: ["http://a:1"], west: ["http://b:1"] },
      { breaker: { failures: 3, window: "30s", probeAfter: "10s" }, retry: { attempts: 1 } },
    );
    backend("east/a:1").script = () => answers(refused());
    for (let request = 0; request < 10; request++) await run(dispatcher);
    expect(asked().filter((id) => id === "east/a:1")).toHaveLength(3);
    backend("east/a:1").script = () => answers(token, finish);
    await clock.advance(10_000);
    await run(dispatcher);
    await run(dispatcher);
    expect(asked().filter((id) => id === "east/a:1")).toHaveLength(5);
  });
});

describe("a caller that leaves", () => {
  it.each([
    ["before any event", (_: unknown, signal: AbortSignal) => silence(signal)],
    [
      "before the first token",
      async function* (_: unknown, signal: AbortSignal) {
        yield accepted;
        yield* silence(signal);
      },
    ],
    [
      "in the middle",
      async function* (_: unknown, signal: AbortSignal) {
        yield token;
        yield* silence(signal);
      },
    ],
  ])("%s cancels the generation, costs no retry and leaves no load behind", async (_, script) => {
    const { dispatcher, clock, all, asked, ends } = await fleet();
    let aborted = 0;
    all((request, signal) => {
      signal.addEventListener("abort", () => aborted++);
      return script(request, signal);
    });
    const control = new AbortController();
    const answer = expect(run(dispatcher, control.signal)).rejects.toMatchObject({ status: 499, code: "cancelled" });
    await clock.advance(10);
    control.abort();
    await answer;
    expect(aborted).toBe(1);
    expect(asked()).toHaveLength(1);
    expect(ends).toEqual([{ attempts: 1, code: "cancelled" }]);
    for (const pool of dispatcher.snapshot().pools) {
      for (const each of pool.backends) {
        expect(each).toMatchObject({
          inFlight: 0,
          breaker: "closed",
          load: { pendingPrefillTokens: 0, activeRows: 0 },
        });
      }
    }
  });

  it("during a pause between attempts ends the wait", async () => {
    const { dispatcher, clock, all } = await fleet({ east: ["http://a:1"] });
    all(() => answers(unavailable("queue_full", "full", { retryAfterMs: 2_000 })));
    const control = new AbortController();
    const answer = expect(run(dispatcher, control.signal)).rejects.toMatchObject({ code: "cancelled" });
    await clock.advance(100);
    control.abort();
    await answer;
  });
});

describe("which backends count", () => {
  it("one with another vocabulary is never asked, and the reason is shown", async () => {
    const { dispatcher, clock, backend, asked } = await fleet({ east: ["http://a:1", "http://b:1"] });
    backend("east/a:1").vocabularyHash = "another";
    backend("east/a:1").ready = false;
    await clock.advance(3_000);
    backend("east/a:1").ready = true;
    await clock.advance(3_000);
    const decisions: string[] = [];
    for (let request = 0; request < 4; request++) {
      for (const event of await run(dispatcher)) {
        if (event.type === "attempt")
          decisions.push(...event.decision.candidates.flatMap(({ excluded }) => excluded ?? []));
      }
    }
    expect(new Set(asked())).toEqual(new Set(["east/b:1"]));
    expect(new Set(decisions)).toEqual(new Set(["vocabulary differs from the gateway's tokenizer"]));
  });

  it("load is counted at the pick: a burst spreads over the pool", async () => {
    const { dispatcher, clock, all, asked } = await fleet({ east: ["http://a:1", "http://b:1", "http://c:1"] });
    all((_, signal) => silence(signal));
    const control = new AbortController();
    const burst = Array.from({ length: 9 }, () => run(dispatcher, control.signal).catch(() => {}));
    await clock.advance(10);
    const counts = ["a", "b", "c"].map((name) => asked().filter((id) => id === `east/${name}:1`).length);
    // All nine share one prompt: the first backend to get it holds it, so affinity may give it a little more.
    expect(Math.max(...counts)).toBeLessThanOrEqual(4);
    expect(Math.min(...counts)).toBeGreaterThanOrEqual(2);
    control.abort();
    await Promise.all(burst);
  });

  it("what the model offers is learned from its backends", async () => {
    const { dispatcher } = await fleet();
    expect(dispatcher.poolsOf("m")).toEqual(["east", "west"]);
    expect(dispatcher.poolsOf("constructor")).toEqual([]);
    expect(dispatcher.info("m")).toMatchObject({ contextLength: 2048, blockSize: 16 });
    expect(dispatcher.info("unknown")).toBeUndefined();
    expect(dispatcher.ready()).toBe(true);
  });
});

describe("a new configuration", () => {
  it("keeps backends it names, opens new ones, and closes the others after their last answer", async () => {
    const { dispatcher, clock, all, backend, byId } = await fleet({ east: ["http://a:1", "http://b:1"] });
    const kept = backend("east/b:1");
    const gone = backend("east/a:1");
    kept.ready = false;
    await clock.advance(3_000);
    let release = () => {};
    all(async function* () {
      yield token;
      await new Promise<void>((resolve) => {
        release = resolve;
      });
      yield finish;
    });
    const answer = run(dispatcher);
    await clock.advance(10);
    dispatcher.reconfigure(poolsConfig({ east: ["http://b:1", "http://c:1"] }));
    expect(gone.closed).toBe(false);
    release();
    expect(tokensOf(await answer)).toEqual([7]);
    expect(gone.closed).toBe(true);
    expect(backend("east/b:1")).toBe(kept);
    expect([...byId.keys()]).toContain("east/c:1");
    expect(kept.closed).toBe(false);
  });

  it("that cannot be opened changes nothing", async () => {
    const { open: openBackend } = scriptedBackends();
    const clock = virtualClock();
    const dispatcher = createDispatcher({
      config: poolsConfig({ east: ["http://a:1"] }),
      openBackend(spec) {
        if (spec.endpoint.includes("bad"))
          throw new SluiceError({ status: 500, type: "server_error", code: "invalid_endpoint", message: "bad" });
        return openBackend(spec);
      },
      clock,
      vocabularyHash: () => undefined,
    });
    open.push(dispatcher);
    expect(() => dispatcher.reconfigure(poolsConfig({ west: ["http://c:1", "http://bad:1"] }))).toThrow("bad");
    expect(dispatcher.poolsOf("m")).toEqual(["east"]);
    await dispatcher.untilReady(never);
    expect(tokensOf(await run(dispatcher))).toEqual([7]);
  });
});
