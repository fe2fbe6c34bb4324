import { once } from "node:events";
import { setImmediate } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { describe, expect, it } from "vitest";
import type { KvBlock, KvFeedEvent } from "../../backends/backend.ts";
import { blockKeys } from "../prompt/blocks.ts";
import type { IndexThreadReport, IndexThreadStart } from "./index-thread.fixture.ts";
import { KvIndex, kvIndexMemory } from "./kv-index.ts";
import { Slots } from "./slots.ts";

/** Mulberry32 (Tommy Ettinger, public domain): the same numbers for the same seed. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const blockSize = 4;
const salt = "s";

/** Prompts that share beginnings, as conversations do: each goes on from a part of one before. */
function promptsFrom(next: () => number, count: number): number[][] {
  const prompts: number[][] = [];
  for (let made = 0; made < count; made++) {
    const before = prompts[Math.floor(next() * made)] ?? [];
    const kept = Math.floor((next() * before.length) / blockSize) * blockSize;
    const more = blockSize * (1 + Math.floor(next() * 6));
    prompts.push([...before.slice(0, kept), ...Array.from({ length: more }, () => Math.floor(next() * 50))]);
  }
  return prompts;
}

/** An engine's cache as it really is, and what it would tell of it. */
class Engine {
  readonly name: string;
  readonly held = new Map<string, KvBlock>();
  constructor(name: string) {
    this.name = name;
  }

  blocksOf(ids: readonly number[], copy: number): KvBlock[] {
    return Array.from({ length: ids.length / blockSize }, (_, at) => ({
      key: `${this.name}/${copy}/${ids.slice(0, (at + 1) * blockSize)}`,
      parent: at === 0 ? undefined : `${this.name}/${copy}/${ids.slice(0, at * blockSize)}`,
      salt,
      tokenIds: ids.slice(at * blockSize, (at + 1) * blockSize),
    }));
  }

  snapshot(seq: number): KvFeedEvent {
    // Parents first, as a snapshot has them.
    const blocks = [...this.held.values()].toSorted((a, b) => a.key.length - b.key.length);
    return { type: "snapshot", seq, instance: "i", blocks, more: false };
  }
}

/** What an index that saw exactly these events should know: slowly, with sets of strings. */
class NaiveIndex {
  readonly #feeds = new Map<string, Map<string, number>>();

  apply(backend: string, event: KvFeedEvent): void {
    const feed = this.#feeds.get(backend) ?? new Map<string, number>();
    this.#feeds.set(backend, feed);
    if (event.type === "heartbeat") return;
    if (event.type === "snapshot") feed.clear();
    else for (const key of event.removed) feed.delete(key);
    for (const block of event.type === "snapshot" ? event.blocks : event.stored) {
      if (feed.has(block.key)) continue;
      const before = block.parent === undefined ? [] : this.#ids.get(block.parent);
      if (block.parent !== undefined && !feed.has(block.parent)) continue;
      const ids = [...(before ?? []), ...block.tokenIds];
      this.#ids.set(block.key, ids);
      feed.set(block.key, blockKeys(ids, blockSize, block.salt).at(-1) ?? 0);
    }
  }
  readonly #ids = new Map<string, readonly number[]>();

  match(ids: readonly number[]): Record<string, number> {
    const keys = blockKeys(ids, blockSize, salt);
    const matched: Record<string, number> = {};
    for (const [backend, feed] of this.#feeds) {
      const held = new Set(feed.values());
      const gap = keys.findIndex((key) => !held.has(key));
      const length = gap < 0 ? keys.length : gap;
      if (length > 0) matched[backend] = length;
    }
    return matched;
  }
}

const lookUp = (index: KvIndex, ids: readonly number[]) =>
  Object.fromEntries(index.match(blockKeys(ids, blockSize, salt), 1_000_000));

describe("the KV index against a naive one", () => {
  it.each(Array.from({ length: 40 }, (_, seed) => [seed + 1]))(
    "knows the same after events that are lost, doubled, late or reset, and the truth after a snapshot (seed %i)",
    (seed) => {
      const next = random(seed);
      const prompts = promptsFrom(next, 30);
      const backends = 1 + Math.floor(next() * 70);
      const engines = Array.from({ length: backends }, (_, at) => new Engine(`b${at}`));
      const index = new KvIndex({ maxEventBlocks: 200_000 });
      const naive = new NaiveIndex();
      const told = (backend: string, event: KvFeedEvent): void => {
        index.apply(backend, event);
        naive.apply(backend, event);
      };
      const late: Array<() => void> = [];
      for (let seq = 1; seq <= 600; seq++) {
        const engine = engines[Math.floor(next() * backends)];
        const prompt = prompts[Math.floor(next() * prompts.length)];
        if (engine === undefined || prompt === undefined) throw new Error("no engine");
        const stored = next() < 0.6 ? engine.blocksOf(prompt, next() < 0.2 ? 1 : 0) : [];
        const removed = stored.length > 0 ? [] : [...engine.held.keys()].filter(() => next() < 0.2);
        for (const key of removed) engine.held.delete(key);
        for (const block of stored) engine.held.set(block.key, block);
        const event: KvFeedEvent = { type: "delta", seq, stored, removed, more: false };
        const fate = next();
        if (fate < 0.1) continue;
        if (fate < 0.2) late.push(() => told(engine.name, event));
        else told(engine.name, event);
        if (fate > 0.95) told(engine.name, event);
        if (fate > 0.4 && fate < 0.42)
          told(engine.name, { type: "snapshot", seq, instance: "new", blocks: [], more: false });
        if (next() < 0.1) late.splice(Math.floor(next() * late.length), 1)[0]?.();
        if (seq % 50 === 0) for (const ids of prompts) expect(lookUp(index, ids)).toEqual(naive.match(ids));
      }
      for (const engine of engines) told(engine.name, engine.snapshot(1_000));
      for (const ids of prompts) {
        const truth: Record<string, number> = {};
        for (const { name, held } of engines) {
          const keys = new Set([...held.values()].map(({ key }) => key.slice(key.indexOf("/", name.length + 1) + 1)));
          let length = 0;
          while (keys.has(`${ids.slice(0, (length + 1) * blockSize)}`) && length < ids.length / blockSize) length++;
          // A block whose parent is gone cannot be placed; a chain of both copies' blocks is one chain all the same.
          if (length > 0) truth[name] = length;
        }
        expect(lookUp(index, ids)).toEqual(naive.match(ids));
        for (const [name, length] of Object.entries(lookUp(index, ids)))
          expect(length).toBeLessThanOrEqual(truth[name] ?? 0);
      }
      for (const { name } of engines)
        index.apply(name, { type: "snapshot", seq: 2_000, instance: "i", blocks: [], more: false });
      expect(index.size().eventBlocks).toBe(0);
    },
  );
});

describe("one thread that writes the index and others that read it", () => {
  it("never finds a backend for a block that it did not hold, and in the end agree on all", async () => {
    const next = random(7);
    const names = Array.from({ length: 40 }, (_, at) => `b${at}`);
    const slots = new Slots();
    for (const name of names) slots.take(name);
    // Small, so that buckets are full and blocks take each other's places all the time.
    const limits = { maxEventBlocks: 600, maxRoutedBlocks: 100 };
    const memory = kvIndexMemory((bytes) => new SharedArrayBuffer(bytes), 4, limits);
    const index = new KvIndex({ memory, slots, ...limits });
    const prompts = Array.from({ length: 60 }, () =>
      Array.from({ length: 8 * blockSize }, () => Math.floor(next() * 1_000)),
    );
    // Each backend may only ever hold the beginnings given here.
    const longest = prompts.map(() =>
      Object.fromEntries(names.map((name) => [name, next() < 0.3 ? 1 + Math.floor(next() * 8) : 0])),
    );
    const control = new SharedArrayBuffer(8);
    const words = new Int32Array(control);
    const start = (thread: number, role: IndexThreadStart["role"]) => {
      const workerData: IndexThreadStart = {
        memory,
        thread,
        slots: slots.all,
        prompts: prompts.map((ids) => blockKeys(ids, blockSize, salt)),
        longest,
        role,
        control,
      };
      const worker = new Worker(new URL("./index-thread.fixture.ts", import.meta.url), { workerData, execArgv: [] });
      return once(worker, "message").then(([report]): IndexThreadReport => report);
    };
    const threads = [start(1, "reads"), start(2, "reads"), start(3, "routes")];
    const engines = names.map((name) => new Engine(name));
    // By work done and not by time: a slow machine only takes longer.
    for (let turn = 0; Atomics.load(words, 1) < 20_000; turn++) {
      const engine = engines[turn % engines.length];
      const at = Math.floor(next() * prompts.length);
      const length = longest[at]?.[engine?.name ?? ""] ?? 0;
      if (engine === undefined || length === 0) continue;
      const blocks = engine.blocksOf((prompts[at] ?? []).slice(0, length * blockSize), 0);
      index.apply(engine.name, { type: "delta", seq: turn, stored: blocks, removed: [], more: false });
      const leaving = engines[Math.floor(next() * engines.length)];
      if (leaving !== undefined)
        index.apply(leaving.name, { type: "snapshot", seq: turn, instance: "i", blocks: [], more: false });
      // Readers of a single core must come to run, too.
      if (turn % 256 === 0) await setImmediate();
    }
    Atomics.store(words, 0, 1);
    const reports = await Promise.all(threads);
    expect(reports.flatMap(({ wrong }) => wrong)).toEqual([]);
    const last = prompts.map((ids) => lookUp(index, ids));
    expect(last.some((found) => Object.keys(found).length > 0)).toBe(true);
    for (const report of reports) {
      expect(report.done).toBeGreaterThan(0);
      expect(report.last).toEqual(last);
    }
  }, 180_000);

  it("finds what another thread routed a moment ago", async () => {
    const slots = new Slots();
    for (const name of ["a", "b"]) slots.take(name);
    const memory = kvIndexMemory((bytes) => new SharedArrayBuffer(bytes), 2);
    const [here, there] = [0, 1].map((thread) => new KvIndex({ memory, slots, thread }));
    here?.routed("b", [11, 12, 13], 1_000);
    there?.routed("a", [11, 12], 1_000);
    for (const index of [here, there])
      expect(Object.fromEntries(index?.match([11, 12, 13], 0) ?? [])).toEqual({ a: 2, b: 3 });
  });
});
