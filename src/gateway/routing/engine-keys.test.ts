import { expect, it } from "vitest";
import { EngineKeys } from "./engine-keys.ts";

it("knows the same as a map after any sequence of sets and deletes, large keys and zero included", () => {
  const keys = new EngineKeys();
  const map = new Map<string, number>();
  let state = 1;
  const next = (bound: number): number => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return (state >>> 8) % bound;
  };
  for (let turn = 0; turn < 20_000; turn++) {
    const key = `block-${next(3_000)}`;
    if (next(3) === 0) {
      keys.delete(key);
      map.delete(key);
    } else {
      const chain = next(2) === 0 ? 0 : 2 ** 53 - 1 - next(1_000);
      keys.set(key, chain);
      map.set(key, chain);
    }
  }
  expect(keys.size).toBe(map.size);
  for (let key = 0; key < 3_000; key++) expect(keys.get(`block-${key}`)).toBe(map.get(`block-${key}`));
  expect([...keys.chains()].toSorted()).toEqual([...map.values()].toSorted());
  keys.clear();
  expect([keys.size, keys.has("block-1"), keys.get("block-1")]).toEqual([0, false, undefined]);
});

it("tells keys apart that differ in one character, wherever it stands", () => {
  const keys = new EngineKeys();
  const all = Array.from(
    { length: 2_000 },
    (_, at) => `${"a".repeat(at % 40)}${String.fromCharCode(65 + at)}${"b".repeat(at % 7)}`,
  );
  for (const [at, key] of all.entries()) keys.set(key, at);
  for (const [at, key] of all.entries()) expect(keys.get(key)).toBe(at);
});
