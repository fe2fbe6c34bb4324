import { afterEach, describe, expect, it } from "vitest";
import { closeFleets, fleet } from "../../../test/support/fleet.ts";
import { preparedRequest } from "../../../test/support/prepared.ts";
import { collect, tokensOf } from "../../../test/support/requests.ts";
import { accepted, answers, finish, type Script, silence, token } from "../../../test/support/scripted-backend.ts";
import { type VirtualClock, virtualClock } from "../../../test/support/virtual-clock.ts";
import type { GenerationEvent } from "../../backends/backend.ts";
import { SluiceError, unavailable } from "../../errors.ts";
import type { PreparedRequest } from "../request.ts";
import { Hedging } from "./hedge.ts";

const never = new AbortController().signal;
afterEach(closeFleets);

describe("a pool's hedging", () => {
  it("knows no delay before it has seen enough first tokens, then their 95th percentile", () => {
    const hedging = new Hedging({ after: "p95", max: 1 });
    for (let ms = 1; ms <= 19; ms++) hedging.observe(ms);
    expect(hedging.delay()).toBeUndefined();
    hedging.observe(20);
    expect(hedging.delay()).toBe(19);
    expect(new Hedging({ after: 500, max: 1 }).delay()).toBe(500);
  });

  it("remembers the last 128 only", () => {
    const hedging = new Hedging({ after: "p95", max: 1 });
    for (let count = 0; count < 500; count++) hedging.observe(9_000);
    for (let count = 0; count < 128; count++) hedging.observe(10);
    expect(hedging.delay()).toBe(10);
  });

  it("spends a share of the requests, and cannot save up more than ten", () => {
    const hedging = new Hedging({ after: 500, max: 0.05 });
    const taken = () => Array.from({ length: 50 }, () => hedging.take()).filter(Boolean).length;
    expect(taken()).toBe(0);
    for (let request = 0; request < 20; request++) hedging.request();
    expect(taken()).toBe(1);
    for (let request = 0; request < 10_000; request++) hedging.request();
    expect(taken()).toBe(10);
  });
});

const late = (clock: () => VirtualClock, ms: number, ...then: ReadonlyArray<GenerationEvent | Error>): Script =>
  async function* (_, signal) {
    yield accepted;
    await clock().sleep(ms, signal);
    yield* answers(...then);
  };

/** One pool of two backends where every request may be hedged after 100 ms; the first that is asked plays `first`. */
async function race(first: Script, second: Script, changes: Record<string, unknown> = {}) {
  const hedge = { after: "100ms", max: 1 };
  const pools = { east: ["http://a:1", "http://b:1"], west: ["http://c:1"] };
  const world = await fleet(pools, { hedge, retry: { attempts: 3 }, ...changes });
  const { byId, clock } = world;
  const aborted: Array<{ readonly id: string; readonly at: number }> = [];
  let asked = 0;
  for (const each of byId.values()) {
    each.script = (request, signal) => {
      const script = asked++ === 0 ? first : second;
      signal.addEventListener("abort", () => aborted.push({ id: each.id, at: clock.now() }));
      return script(request, signal);
    };
  }
  const run = (changes: Partial<PreparedRequest> = {}, signal = never) =>
    collect(world.dispatcher.dispatch(preparedRequest(changes), 0, signal));
  const expectNothingLeft = () => {
    for (const pool of world.dispatcher.snapshot().pools) {
      for (const { id, inFlight, load, breaker } of pool.backends) {
        expect({ id, inFlight, load, breaker }).toEqual({
          id,
          inFlight: 0,
          load: { pendingPrefillTokens: 0, activeRows: 0 },
          breaker: "closed",
        });
      }
    }
  };
  return { ...world, run, aborted, expectNothingLeft };
}

let clock: VirtualClock = virtualClock();
const byClock = () => clock;
const refused = () => unavailable("backend_unreachable", "refused");

describe("a late first token", () => {
  it("has a second backend of the pool asked, with the same seed; its answer is taken and the first one cancelled", async () => {
    const world = await race(
      (_, signal) => silence(signal),
      () => answers(accepted, token, finish),
    );
    const answer = world.run();
    await world.clock.advance(99);
    expect(world.asked()).toHaveLength(1);
    await world.clock.advance(1);
    const events = await answer;
    expect(tokensOf(events)).toEqual([7]);
    expect(world.asked()).toHaveLength(2);
    expect(world.aborted).toEqual([{ id: events[0]?.type === "attempt" && events[0].backend, at: 100 }]);
    const attempts = events.flatMap((event) => (event.type === "attempt" ? event.backend : []));
    expect(new Set(attempts)).toEqual(new Set(["east/a:1", "east/b:1"]));
    const requests = [...world.byId.values()].flatMap(({ requests }) => requests);
    expect(new Set(requests.map(({ sampling }) => sampling.seed)).size).toBe(1);
    expect(new Set(requests.map(({ id }) => id)).size).toBe(2);
    expect(world.hedges).toEqual(["won"]);
    expect(world.ends).toEqual([{ attempts: 2, code: undefined }]);
    expect(world.reports.map(({ error }) => error?.code)).toEqual(["outrun", undefined]);
    world.expectNothingLeft();
  });

  it("that comes after all, before the second backend's, is taken, and nothing of the second is seen", async () => {
    const world = await race(late(byClock, 150, token, finish), (_, signal) => silence(signal));
    clock = world.clock;
    const answer = world.run();
    await world.clock.advance(150);
    const events = await answer;
    expect(tokensOf(events)).toEqual([7]);
    expect(events.filter(({ type }) => type === "attempt")).toHaveLength(1);
    expect(world.aborted.map(({ at }) => at)).toEqual([150]);
    expect(world.hedges).toEqual(["lost"]);
    world.expectNothingLeft();
  });

  it("when both come in the same turn, one is the answer, and of the other nothing is kept", async () => {
    const both = Promise.withResolvers<void>();
    const script: Script = async function* () {
      await both.promise;
      yield token;
      throw unavailable("backend_stream_broken", "broke");
    };
    const world = await race(script, script);
    // Tells how much it was told to go on from.
    world.backend("west/c:1").script = (request) => answers({ type: "tokens", ids: [...request.generatedIds] }, finish);
    const answer = world.run();
    await world.clock.advance(100);
    expect(world.asked()).toHaveLength(2);
    for (const id of ["east/a:1", "east/b:1"]) world.backend(id).ready = false;
    await world.clock.advance(5_000);
    both.resolve();
    expect(tokensOf(await answer)).toEqual([7, 7]);
    await world.clock.advance(0);
    world.expectNothingLeft();
  });

  it("when the second answers, has the caller told what that one found cached", async () => {
    const eight: GenerationEvent = { type: "tokens", ids: [1, 2, 3, 4, 5, 6, 7, 8] };
    const world = await race(
      (_, signal) => silence(signal),
      () => answers({ type: "accepted", cachedTokens: 32 }, eight, unavailable("backend_stream_broken", "broke")),
    );
    const answer = world.run();
    await world.clock.advance(100);
    expect((await answer).at(-1)).toMatchObject({ usage: { promptTokens: 40, cachedTokens: 32, completionTokens: 8 } });
  });

  it("of an attempt that nobody listens to at the moment: it is cancelled all the same", async () => {
    const world = await race(
      async function* (_, signal) {
        await world.clock.sleep(150, signal);
        yield accepted;
        yield* silence(signal);
      },
      (request, signal) => late(byClock, 100, token, finish)(request, signal),
    );
    clock = world.clock;
    const events = world.dispatcher.dispatch(preparedRequest(), 0, never)[Symbol.asyncIterator]();
    const take = async (ms: number) => {
      const next = events.next();
      await world.clock.advance(ms);
      return (await next).value?.type;
    };
    expect(await take(0)).toBe("attempt");
    expect(await take(150)).toBe("accepted");
    // The second one's token comes while the caller is busy with what the first one said.
    await world.clock.advance(50);
    const rows = world.dispatcher
      .snapshot()
      .pools.flatMap(({ backends }) => backends.map(({ load }) => load.activeRows));
    expect(rows.reduce((sum, count) => sum + count)).toBe(1);
    expect(await take(0)).toBe("attempt");
    expect(await take(0)).toBe("accepted");
    expect(await take(0)).toBe("tokens");
    expect(await take(0)).toBe("finish");
    expect((await events.next()).done).toBe(true);
    world.expectNothingLeft();
  });

  it("is not waited for when it failed: the second goes on alone, and the caller sees whose answer it is", async () => {
    const world = await race(late(byClock, 150, refused()), late(byClock, 200, token, finish));
    clock = world.clock;
    const answer = world.run();
    await world.clock.advance(300);
    const events = await answer;
    expect(tokensOf(events)).toEqual([7]);
    expect(events.flatMap((event) => (event.type === "attempt" ? event.backend : [])).at(-1)).toBe(
      world.reports.find(({ error }) => error === undefined)?.backend,
    );
    expect(world.asked()).toHaveLength(2);
    world.expectNothingLeft();
  });

  it("when the second fails, is waited for", async () => {
    const world = await race(late(byClock, 500, token, finish), () => answers(refused()));
    clock = world.clock;
    const answer = world.run();
    await world.clock.advance(500);
    expect(tokensOf(await answer)).toEqual([7]);
    expect(world.hedges).toEqual(["lost"]);
    world.expectNothingLeft();
  });

  it("when both fail, leads on as any failure does, and both were attempts", async () => {
    const world = await race(late(byClock, 150, refused()), () => answers(refused()));
    clock = world.clock;
    world.backend("west/c:1").script = () => answers(token, finish);
    const answer = world.run();
    await world.clock.advance(1_000);
    expect(tokensOf(await answer)).toEqual([7]);
    expect(world.asked().slice(-1)).toEqual(["west/c:1"]);
    // Three may be made in a pool: the hedge was one of them.
    expect(world.asked().filter((id) => id.startsWith("east")).length).toBeLessThanOrEqual(3);
    expect(world.hedges).toEqual(["failed"]);
    world.expectNothingLeft();
  });

  it("and a refusal for the content from either: the caller is told, and the other is not waited for", async () => {
    const refusal = new SluiceError({
      status: 400,
      type: "invalid_request_error",
      code: "content_policy_violation",
      message: "no",
    });
    const world = await race(
      (_, signal) => silence(signal),
      () => answers(refusal),
    );
    const answer = expect(world.run()).rejects.toMatchObject({ code: "content_policy_violation" });
    await world.clock.advance(100);
    await answer;
    await world.clock.advance(0);
    expect(world.asked()).toHaveLength(2);
    world.expectNothingLeft();
  });

  it("whose caller leaves: both are cancelled, and nothing is held", async () => {
    const world = await race(
      (_, signal) => silence(signal),
      (_, signal) => silence(signal),
    );
    const control = new AbortController();
    const answer = expect(world.run({}, control.signal)).rejects.toMatchObject({ status: 499, code: "cancelled" });
    await world.clock.advance(200);
    control.abort();
    expect(world.aborted).toHaveLength(2);
    await answer;
    await world.clock.advance(0);
    expect(world.hedges).toEqual([]);
    world.expectNothingLeft();
  });

  it("is all that is hedged: a stream that has begun is left alone, and so is one that is resumed", async () => {
    const world = await race(
      async function* (_, signal) {
        yield token;
        await world.clock.sleep(1_000, signal);
        throw unavailable("backend_stream_broken", "broke");
      },
      async function* (request, signal) {
        await world.clock.sleep(1_000, signal);
        yield* answers({ type: "tokens", ids: [request.generatedIds.length] }, finish);
      },
    );
    const answer = world.run();
    await world.clock.advance(3_000);
    expect(tokensOf(await answer)).toEqual([7, 1]);
    expect(world.asked()).toHaveLength(2);
    expect(world.hedges).toEqual([]);
  });
});

describe("no second backend is asked", () => {
  const slow = late(byClock, 400, token, finish);
  const asksOnce = async (changes: Record<string, unknown>) => {
    const world = await race(slow, slow, changes);
    clock = world.clock;
    const answer = world.run();
    await world.clock.advance(400);
    expect(tokensOf(await answer)).toEqual([7]);
    expect(world.asked()).toHaveLength(1);
    return world;
  };

  it.each([
    ["without the setting", { hedge: undefined }],
    ["while too little is known of the pool", { hedge: { after: "p95", max: 1 } }],
    ["beyond the share", { hedge: { after: "100ms", max: 0.05 } }],
    ["when the pool allows one attempt", { retry: { attempts: 1 } }],
  ])("%s", async (_, changes) => {
    await asksOnce(changes);
  });

  it("beyond the retry budget", async () => {
    const quick = late(byClock, 50, token, finish);
    const world = await race(quick, quick, { hedge: { after: "10ms", max: 1 }, retry: { attempts: 2, budget: 0 } });
    clock = world.clock;
    for (let request = 0; request < 110; request++) {
      const answer = world.run();
      await world.clock.advance(50);
      await answer;
    }
    // What is free of any share: ten a second over ten seconds.
    expect(world.hedges).toHaveLength(100);
    expect(world.asked()).toHaveLength(210);
    world.expectNothingLeft();
  });

  it("of another pool", async () => {
    const world = await fleet({ east: ["http://a:1"], west: ["http://b:1"] }, { hedge: { after: "100ms", max: 1 } });
    clock = world.clock;
    world.all(slow);
    const answer = collect(world.dispatcher.dispatch(preparedRequest(), 0, never));
    await world.clock.advance(400);
    await answer;
    expect(world.asked()).toEqual(["east/a:1"]);
  });
});

it("hedges at the pool's own p95 once that is known", async () => {
  const world = await race(late(byClock, 50, token, finish), late(byClock, 50, token, finish), {
    hedge: { after: "p95", max: 1 },
  });
  clock = world.clock;
  for (let request = 0; request < 20; request++) {
    const answer = world.run();
    await world.clock.advance(50);
    await answer;
  }
  expect(world.asked()).toHaveLength(20);
  for (const each of world.byId.values()) each.script = (_, signal) => silence(signal);
  const control = new AbortController();
  const answer = world.run({}, control.signal).catch(() => {});
  await world.clock.advance(49);
  expect(world.asked()).toHaveLength(21);
  await world.clock.advance(1);
  expect(world.asked()).toHaveLength(22);
  control.abort();
  await answer;
});
