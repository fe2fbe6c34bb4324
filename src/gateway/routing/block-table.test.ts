import { once } from "node:events";
import { Worker } from "node:worker_threads";
import { expect, it } from "vitest";
import { BlockTable } from "./block-table.ts";
import { highOf, lowOf, type TableThreadReport, type TableThreadStart, writtenFor } from "./table-thread.fixture.ts";

const table = (entries: number, groupBits = 0) => new BlockTable(new ArrayBuffer(BlockTable.bytes(entries)), groupBits);

it("holds what it was made for, and gives back each entry that it took", () => {
  const entries = 10_000;
  const full = table(entries);
  const taken: number[] = [];
  for (let key = 0; key < entries; key++) if (full.set(key, key >>> 3, key % 7, key + 1) === 1) taken.push(key);
  expect(taken.length).toBeGreaterThanOrEqual(entries * 0.999);
  for (const key of taken) expect(full.get(key, key >>> 3, key % 7)).toBe(key + 1);
  expect(full.get(1, 1, 1)).toBe(0);
});

it("takes out and puts in for ever without filling up", () => {
  const churned = table(200);
  for (let key = 0; key < 20_000; key++) {
    expect(churned.set(key, 0, 0, 1)).toBe(1);
    if (key >= 200) expect(churned.set(key - 200, 0, 0, 0)).toBe(-1);
  }
  for (let key = 19_800; key < 20_000; key++) expect(churned.get(key, 0, 0)).toBe(1);
  expect(churned.get(19_799, 0, 0)).toBe(0);
});

it("gives the place of the least to a newcomer where it is told what is least", () => {
  const small = table(4);
  const rank = (value: number) => value;
  for (let value = 1; value <= 10; value++) expect(small.set(value, 0, 0, value, rank)).toBe(1);
  expect(small.set(11, 0, 0, 11)).toBeUndefined();
  expect(small.set(11, 0, 0, 11, rank)).toBe(0);
  expect(small.get(1, 0, 0)).toBe(0);
  expect(small.get(11, 0, 0)).toBe(11);
});

it("tells the entries of one key in one group, and no others", () => {
  const grouped = table(4, 3);
  for (const tag of [8, 15, 16]) grouped.set(5, 6, tag, tag * 10);
  grouped.set(5, 7, 9, 1);
  const seen: Array<readonly [number, number]> = [];
  grouped.each(5, 6, 10, (tag, value) => void seen.push([tag, value]));
  expect(seen.toSorted((a, b) => a[0] - b[0])).toEqual([
    [8, 80],
    [15, 150],
  ]);
});

it("empties a bucket whose writer died in the middle of a change, and works on", () => {
  const buffer = new ArrayBuffer(BlockTable.bytes(1));
  const one = new BlockTable(buffer, 0);
  one.set(1, 2, 3, 4);
  new Int32Array(buffer)[0] = 7;
  one.repair();
  expect(one.get(1, 2, 3)).toBe(0);
  expect(one.set(1, 2, 3, 4)).toBe(1);
  expect(one.get(1, 2, 3)).toBe(4);
});

it("never gives a reader half of a change, however fast entries take each other's places", async () => {
  const keys = 24;
  const shared = new SharedArrayBuffer(BlockTable.bytes(1));
  const written = new BlockTable(shared, 0);
  const done = new SharedArrayBuffer(4);
  const enough = 2_000_000;
  const workerData: TableThreadStart = { table: shared, keys, done, enough };
  const readers = [1, 2].map(() => {
    const worker = new Worker(new URL("./table-thread.fixture.ts", import.meta.url), { workerData, execArgv: [] });
    return once(worker, "message").then(([report]): TableThreadReport => report);
  });
  const count = new Int32Array(done);
  // One bucket for all keys: nearly every write throws another key out.
  let turn = 0;
  const rank = (value: number) => (value * 7919 + turn) % 101;
  for (; Atomics.load(count, 0) < enough; turn++) {
    const key = (turn * 5) % keys;
    written.set(lowOf(key), highOf(key), 0, turn % 3 === 0 ? 0 : writtenFor(key), rank);
  }
  for (const { found, wrong } of await Promise.all(readers)) {
    expect(wrong).toBe(0);
    expect(found).toBeGreaterThan(1_000);
  }
}, 180_000);
