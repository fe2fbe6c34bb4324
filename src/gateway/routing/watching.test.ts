import { expect, it } from "vitest";
import { poolsConfig } from "../../../test/support/prepared.ts";
import { scriptedBackends, silence } from "../../../test/support/scripted-backend.ts";
import { virtualClock } from "../../../test/support/virtual-clock.ts";
import type { Backend, KvFeedEvent, KvFeedPosition } from "../../backends/backend.ts";
import { followKvEvents } from "./feed.ts";
import { type Observation, watchHealth } from "./health.ts";
import { KvIndex } from "./kv-index.ts";

function setUp() {
  const pool = poolsConfig({ east: ["http://a:1"] }).pools.east;
  if (pool === undefined) throw new Error("no pool");
  const { open, byId } = scriptedBackends();
  open({ poolName: "east", pool, endpoint: "http://a:1" });
  const backend = byId.get("east/a:1");
  if (backend === undefined) throw new Error("no backend");
  const stop = new AbortController();
  return { backend, clock: virtualClock(), stop, random: () => 0.5 };
}

/** Stops a watch and waits until it has. */
const ending = (stop: AbortController, ended: Promise<void>) => async () => {
  stop.abort();
  await ended;
};

/** Follows a scripted backend's health; `change` replaces some of its answers. */
function watched(change: (backend: Backend) => Partial<Backend> = () => ({})) {
  const { backend, clock, stop, random } = setUp();
  const seen: Observation[] = [];
  const probed: Backend = { ...backend, ...change(backend) };
  const ended = watchHealth({ backend: probed, clock, random, report: (o) => seen.push(o), signal: stop.signal });
  return { backend, clock, seen, end: ending(stop, ended) };
}

it("a backend is probed at a steady pace, and asked what it is only once", async () => {
  let asked = 0;
  const { clock, seen, end } = watched((backend) => ({
    info(signal) {
      asked++;
      return backend.info(signal);
    },
  }));
  await clock.advance(10_000);
  expect(seen).toHaveLength(6);
  expect(asked).toBe(1);
  await end();
});

it("one that comes back is asked again what it is: another model may stand there now", async () => {
  const { backend, clock, seen, end } = watched();
  await clock.advance(0);
  backend.ready = false;
  await clock.advance(3_000);
  expect(seen.at(-1)).toMatchObject({ health: { ready: false, reason: "told so" }, info: undefined });
  backend.vocabularyHash = "new";
  backend.ready = true;
  await clock.advance(3_000);
  expect(seen.at(-1)).toMatchObject({ health: { ready: true }, info: { vocabularyHash: "new" } });
  await end();
});

it("one late answer changes nothing, two put others before a backend, five take it out", async () => {
  let late = 0;
  const hang = async (signal: AbortSignal) => {
    for await (const _ of silence(signal));
    return { ready: true } as const;
  };
  const { clock, seen, end } = watched(() => ({
    health: (signal) => (late++ < 1 ? hang(signal) : Promise.resolve({ ready: true })),
  }));
  await clock.advance(3_000);
  expect(seen.map(({ health }) => health.ready)).toEqual([true]);
  await end();

  let asked = 0;
  const gone = watched(() => ({
    health: (signal) => (asked++ < 1 ? Promise.resolve({ ready: true }) : hang(signal)),
  }));
  await gone.clock.advance(30_000);
  expect(gone.seen.slice(0, 5).map(({ health }) => health)).toEqual([
    { ready: true },
    { ready: true, late: true },
    { ready: true, late: true },
    { ready: true, late: true },
    { ready: false, reason: "probe_timeout" },
  ]);
  await gone.end();

  const never = watched(() => ({ health: hang }));
  await never.clock.advance(5_000);
  expect(never.seen.map(({ health }) => health)).toEqual([{ ready: false, reason: "probe_timeout" }]);
  await never.end();
});

type Subscription = (from: KvFeedPosition | undefined, signal: AbortSignal) => AsyncIterable<KvFeedEvent>;

function followed(subscribe: Subscription) {
  const { backend, clock, stop, random } = setUp();
  const index = new KvIndex();
  const positions: Array<KvFeedPosition | undefined> = [];
  let flips = 0;
  const fed: Backend = {
    ...backend,
    kvEvents(from, signal) {
      positions.push(from);
      return subscribe(from, signal);
    },
  };
  const ended = followKvEvents({ backend: fed, index, clock, random, signal: stop.signal, changed: () => flips++ });
  return { clock, index, positions, id: backend.id, end: ending(stop, ended), flips: () => flips };
}

const snapshot = (seq: number, more = false): KvFeedEvent => ({
  type: "snapshot",
  seq,
  instance: "run",
  blocks: [],
  more,
});
const delta = (seq: number, more = false): KvFeedEvent => ({ type: "delta", seq, stored: [], removed: [], more });

it("a feed that breaks is resumed after its last complete event", async () => {
  let connection = 0;
  const { clock, positions, end } = followed(async function* (_, signal) {
    connection++;
    // A snapshot cut short leaves no place to resume from, a delta cut short the one before it.
    if (connection === 1) yield* [snapshot(4, true), delta(4, true)];
    if (connection === 2) yield* [snapshot(5), delta(6), delta(7, true)];
    if (connection === 3) yield* [snapshot(8, true)];
    if (connection === 4) yield* neverEnds(signal);
  });
  await clock.advance(4_000);
  expect(positions).toEqual([undefined, undefined, { seq: 6, instance: "run" }, undefined]);
  await end();
});

it("a feed that breaks between events is resumed where it was", async () => {
  let connection = 0;
  const { clock, positions, index, id, end } = followed(async function* (_, signal) {
    connection++;
    if (connection === 1) yield* [snapshot(5), delta(6)];
    if (connection === 2) yield* [delta(9)];
    if (connection === 3) yield* neverEnds(signal);
  });
  await clock.advance(2_000);
  expect(positions).toEqual([undefined, { seq: 6, instance: "run" }, { seq: 9, instance: "run" }]);
  expect(index.feedState(id).alive).toBe(false);
  await end();
});

it("a silent feed is taken for a dead one and opened again, one with heartbeats is not", async () => {
  const silent = followed((_, signal) => neverEnds(signal));
  await silent.clock.advance(7_500);
  expect(silent.positions).toHaveLength(2);
  await silent.end();

  const { clock, index, id, positions, end } = followed(async function* (_, signal) {
    yield snapshot(1);
    for (;;) {
      await clock.sleep(2_000, signal);
      yield { type: "heartbeat", seq: 1 };
    }
  });
  await clock.advance(30_000);
  expect(positions).toHaveLength(1);
  expect(index.feedState(id).alive).toBe(true);
  await end();
});

async function* neverEnds(signal: AbortSignal): AsyncGenerator<never> {
  await new Promise<never>((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}
