import { expect, it } from "vitest";
import type { KvBlock, KvFeedEvent } from "../../backends/backend.ts";
import { blockKeys } from "../prompt/blocks.ts";
import { KvIndex } from "./kv-index.ts";
import { Slots } from "./slots.ts";

const ids = Array.from({ length: 64 }, (_, index) => index + 100);
const keys = blockKeys(ids, 16, "s");

/** The first `count` blocks of `ids`, under an engine's own keys. */
function blocks(count: number, engine = "e", salt = "s"): KvBlock[] {
  return Array.from({ length: count }, (_, index) => ({
    key: `${engine}${index}`,
    parent: index === 0 ? undefined : `${engine}${index - 1}`,
    salt,
    tokenIds: ids.slice(index * 16, (index + 1) * 16),
  }));
}
const stored = (seq: number, list: readonly KvBlock[]): KvFeedEvent => ({
  type: "delta",
  seq,
  stored: list,
  removed: [],
  more: false,
});
const removed = (seq: number, list: readonly string[]): KvFeedEvent => ({
  type: "delta",
  seq,
  stored: [],
  removed: list,
  more: false,
});
const snapshot = (seq: number, list: readonly KvBlock[]): KvFeedEvent => ({
  type: "snapshot",
  seq,
  instance: "i",
  blocks: list,
  more: false,
});

it("finds the longest prefix that each backend holds", () => {
  const index = new KvIndex();
  index.apply("a", snapshot(1, blocks(4)));
  index.apply("b", snapshot(1, blocks(2, "other")));
  index.apply("c", snapshot(1, blocks(4, "e", "another salt")));
  expect(Object.fromEntries(index.match(keys, 0))).toEqual({ a: 4, b: 2 });
});

it("counts no block behind a gap", () => {
  const index = new KvIndex();
  index.apply("a", stored(1, blocks(4)));
  index.apply("a", removed(2, ["e1"]));
  expect(index.match(keys, 0).get("a")).toBe(1);
  index.apply("a", stored(3, blocks(2).slice(1)));
  expect(index.match(keys, 0).get("a")).toBe(4);
});

it("leaves out a block whose parent was never told, and says so", () => {
  const index = new KvIndex();
  index.apply("a", stored(1, blocks(3).slice(1)));
  expect(index.match(keys, 0).size).toBe(0);
  expect(index.feedState("a")).toEqual({ alive: true, blocks: 0, orphans: 2 });
});

it("forgets with a snapshot what was known before it", () => {
  const index = new KvIndex();
  index.apply("a", stored(1, blocks(4)));
  index.apply("a", snapshot(9, blocks(1)));
  expect(index.match(keys, 0).get("a")).toBe(1);
  expect(index.size().eventBlocks).toBe(1);
});

it("credits a routed prompt until its time is up, without a feed", () => {
  const index = new KvIndex();
  index.routed("a", keys, 1_000);
  index.routed("b", keys.slice(0, 2), 5_000);
  index.routed("a", keys.slice(0, 1), 3_000);
  expect(Object.fromEntries(index.match(keys, 999))).toEqual({ a: 4, b: 2 });
  expect(Object.fromEntries(index.match(keys, 2_000))).toEqual({ a: 1, b: 2 });
  expect(Object.fromEntries(index.match(keys, 5_000))).toEqual({});
});

it("joins what events tell and what was just routed into one prefix", () => {
  const index = new KvIndex();
  index.apply("a", stored(1, blocks(2)));
  index.routed("a", keys, 1_000);
  index.apply("a", removed(2, ["e0"]));
  expect(index.match(keys, 0).get("a")).toBe(4);
  expect(index.match(keys, 1_000).get("a")).toBeUndefined();
});

it("takes in no more blocks from events than its bound", () => {
  const index = new KvIndex({ maxEventBlocks: 3 });
  index.apply("a", stored(1, blocks(4)));
  expect(index.size().eventBlocks).toBe(3);
  expect(index.match(keys, 0).get("a")).toBe(3);
});

it("gives up the routed blocks that expire first when there are too many", () => {
  const index = new KvIndex({ maxRoutedBlocks: 100 });
  const prompt = (seed: number) =>
    blockKeys(
      Array.from({ length: 160 }, (_, at) => seed * 1_000 + at),
      16,
      "s",
    );
  for (let seed = 0; seed < 100; seed++) index.routed("a", prompt(seed), 1_000 + seed);
  const held = (seed: number) => index.match(prompt(seed), 0).get("a") ?? 0;
  expect(index.size().routedBlocks).toBeLessThanOrEqual(250);
  expect(held(99)).toBe(10);
  expect(held(98)).toBe(10);
  expect(Array.from({ length: 50 }, (_, seed) => held(seed)).every((length) => length === 0)).toBe(true);
});

it("forgets a backend altogether, and one that comes back under its name begins with nothing", () => {
  const slots = new Slots();
  const index = new KvIndex({ slots });
  index.apply("a", stored(1, blocks(4)));
  index.routed("a", keys, 10);
  index.routed("b", keys.slice(0, 1), 10);
  index.forget("a");
  slots.drop("a");
  expect(Object.fromEntries(index.match(keys, 0))).toEqual({ b: 1 });
  expect(index.size().eventBlocks).toBe(0);
  index.apply("a", stored(1, blocks(1)));
  expect(Object.fromEntries(index.match(keys, 0))).toEqual({ a: 1, b: 1 });
});

it("holds a block that an engine has twice until both copies are gone", () => {
  const index = new KvIndex();
  index.apply("a", stored(1, [...blocks(1), ...blocks(1, "copy")]));
  index.apply("a", removed(2, ["e0"]));
  expect(index.match(keys, 0).get("a")).toBe(1);
  index.apply("a", removed(3, ["copy0"]));
  expect(index.match(keys, 0).get("a")).toBeUndefined();
});

it("tells whether a feed is alive", () => {
  const index = new KvIndex();
  expect(index.feedState("a").alive).toBe(false);
  index.apply("a", { type: "heartbeat", seq: 0 });
  expect(index.feedState("a").alive).toBe(true);
  index.feedDown("a");
  expect(index.feedState("a").alive).toBe(false);
});

it("finds a 12,000-token prompt among a million blocks in well under a millisecond", () => {
  const index = new KvIndex();
  for (let prompt = 0; prompt < 250; prompt++)
    index.routed(
      `b${prompt % 8}`,
      Array.from({ length: 1000 }, (_, i) => prompt * 1000 + i),
      10,
    );
  const prompt = Array.from({ length: 752 }, (_, i) => 7_000 + i);
  const times = Array.from({ length: 20 }, () => {
    const from = performance.now();
    expect(index.match(prompt, 0).get("b7")).toBe(752);
    return performance.now() - from;
  });
  expect(Math.min(...times)).toBeLessThan(2);
});
