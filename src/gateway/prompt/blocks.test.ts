import { expect, it } from "vitest";
import { blockKeys, chainKey, rootKey } from "./blocks.ts";

const ids = Uint32Array.from({ length: 64 }, (_, index) => index * 7);

it("keys full blocks only, each standing for the whole prefix before it", () => {
  const keys = blockKeys(ids.subarray(0, 50), 16, "salt");
  expect(keys).toHaveLength(3);
  expect(blockKeys(ids, 16, "salt").slice(0, 3)).toEqual(keys);
  const changed = Uint32Array.from(ids);
  changed[0] = 1;
  expect(blockKeys(changed, 16, "salt").some((key) => keys.includes(key))).toBe(false);
});

it("never shares a key between salts", () => {
  expect(blockKeys(ids, 16, "a").some((key) => blockKeys(ids, 16, "b").includes(key))).toBe(false);
});

it("gives the same chain whether built from a prompt or block by block from events", () => {
  let parent = rootKey("salt");
  const keys = [0, 16, 32, 48].map((start) => {
    parent = chainKey(parent, Array.from(ids.subarray(start, start + 16)), 0, 16);
    return parent;
  });
  expect(keys).toEqual(blockKeys(ids, 16, "salt"));
});

it("spreads keys over 53 bits: none collide among 200,000 that differ little", () => {
  const seen = new Set<number>();
  let largest = 0;
  for (let value = 0; value < 200_000; value++) {
    const key = chainKey(rootKey(""), [value % 50_000, 3, Math.floor(value / 50_000)], 0, 3);
    seen.add(key);
    largest = Math.max(largest, key);
  }
  expect(seen.size).toBe(200_000);
  expect(largest).toBeGreaterThan(2 ** 52);
  expect(Number.isSafeInteger(largest)).toBe(true);
});

it("depends on the order of tokens", () => {
  expect(chainKey(1, [1, 2], 0, 2)).not.toBe(chainKey(1, [2, 1], 0, 2));
  expect(chainKey(1, [0, 0], 0, 2)).not.toBe(chainKey(1, [0], 0, 1));
});
