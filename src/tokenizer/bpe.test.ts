import { describe, expect, it } from "vitest";
import { ByteLevelBpe } from "./bpe.ts";
import { MergeTable, NO_MERGE } from "./merges.ts";
import { detached, PieceCache } from "./piece-cache.ts";

/** Merges by the definition: over and over the leftmost pair of the lowest rank. */
function mergeByDefinition(symbols: readonly number[], merges: MergeTable): number[] {
  const left = [...symbols];
  for (;;) {
    let best = NO_MERGE;
    let at = -1;
    for (let index = 0; index + 1 < left.length; index++) {
      const rank = merges.rankOf(left[index] ?? -1, left[index + 1] ?? -1);
      if (rank < best) [best, at] = [rank, index];
    }
    if (at < 0) return left;
    left.splice(at, 2, merges.mergedId(best));
  }
}

describe("merging", () => {
  // A small alphabet and random rules over each other's results: many ties, overlaps and chains.
  let state = 7;
  const draw = (below: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state >>> 8) % below;
  };
  const rules: number[] = [];
  for (let rank = 0; rank < 300; rank++) rules.push(draw(3 + rank), draw(3 + rank), 256 + rank);
  const triples = Uint32Array.from(rules.map((id, index) => (index % 3 === 2 || id < 3 ? id : 253 + id)));
  // Ids 0..2 are the bytes a, b, c; results are 256 and up.
  const merges = new MergeTable(triples);
  const byteTokens = new Int32Array(256).fill(-1);
  for (const [id, letter] of ["a", "b", "c"].entries()) byteTokens[letter.charCodeAt(0)] = id;
  const bpe = (cacheEntries: number): ByteLevelBpe =>
    new ByteLevelBpe({
      merges,
      byteTokens,
      splitter: (text) => [text],
      normalization: "none",
      wholePieces: undefined,
      cacheEntries,
    });

  it.each([1, 2, 3, 20, 63, 64, 65, 66, 200, 1000])("pieces of %i bytes comes out as the definition says", (length) => {
    for (let round = 0; round < 30; round++) {
      const symbols = Array.from({ length }, () => draw(3));
      const text = symbols.map((symbol) => "abc"[symbol] ?? "").join("");
      expect([...bpe(0).encode(text)]).toEqual(mergeByDefinition(symbols, merges));
    }
  });

  it("drops bytes that the vocabulary lacks and merges across them, as HF tokenizers does", () => {
    expect([...bpe(0).encode("aéb")]).toEqual([...bpe(0).encode("ab")]);
    expect([...bpe(0).encode("é")]).toEqual([]);
  });
});

describe("the merge table", () => {
  it("finds every pair and no other, and of a pair listed twice the lower rank", () => {
    const triples: number[] = [];
    for (let index = 0; index < 5000; index++) triples.push(index * 7, index * 13, 100_000 + index);
    triples.push(0, 0, 999_999);
    const table = new MergeTable(Uint32Array.from(triples));
    for (let index = 0; index < 5000; index++) {
      expect(table.rankOf(index * 7, index * 13)).toBe(index);
      expect(table.rankOf(index * 13 + 1, index * 7)).toBe(NO_MERGE);
    }
    expect(table.mergedId(table.rankOf(0, 0))).toBe(100_000);
  });
});

describe("the piece cache", () => {
  it("is bounded and keeps what is used", () => {
    const cache = new PieceCache<number>(100);
    cache.set("kept", 1);
    for (let index = 0; index < 10_000; index++) {
      cache.set(`piece ${index}`, index);
      expect(cache.get("kept")).toBe(1);
    }
    expect(cache.size).toBeLessThanOrEqual(100);
    expect(cache.get("piece 0")).toBeUndefined();
    expect(cache.get("piece 9999")).toBe(9999);
  });

  it("copies texts whole", () => {
    for (const text of ["", "a\u0000b", "\ufeffé한😀"]) expect(detached(text)).toBe(text);
  });
});
