/** Answer of `rankOf` for a pair that never merges: larger than every rank. */
export const NO_MERGE = 0x7fffffff;

/**
 * The merge rules of a BPE model as an open-addressing hash table over the pair (left id, right id).
 * A Map keyed by `left * size + right` would box a double for every look-up that exceeds 2^31; this one allocates nothing.
 */
export class MergeTable {
  /** left, right, rank for each slot; rank -1 = free. */
  readonly #slots: Int32Array;
  readonly #mask: number;
  /** Merged id by rank. */
  readonly #merged: Uint32Array;

  /** `merges`: left id, right id, merged id, in rank order. Of a pair listed twice the first (lower) rank counts. */
  constructor(merges: Uint32Array) {
    const count = merges.length / 3;
    let capacity = 16;
    while (capacity < count * 3) capacity *= 2;
    this.#mask = capacity - 1;
    this.#slots = new Int32Array(capacity * 3).fill(-1);
    this.#merged = new Uint32Array(count);
    for (let rank = 0; rank < count; rank++) {
      this.#merged[rank] = merges[rank * 3 + 2] ?? 0;
      this.#insert(merges[rank * 3] ?? 0, merges[rank * 3 + 1] ?? 0, rank);
    }
  }

  #insert(left: number, right: number, rank: number): void {
    const slots = this.#slots;
    let slot = hash(left, right) & this.#mask;
    while (slots[slot * 3 + 2] !== -1) {
      if (slots[slot * 3] === left && slots[slot * 3 + 1] === right) return;
      slot = (slot + 1) & this.#mask;
    }
    slots[slot * 3] = left;
    slots[slot * 3 + 1] = right;
    slots[slot * 3 + 2] = rank;
  }

  /** Rank of the pair (lower merges first), or NO_MERGE. */
  rankOf(left: number, right: number): number {
    const slots = this.#slots;
    let slot = hash(left, right) & this.#mask;
    for (;;) {
      const at = slot * 3;
      const rank = slots[at + 2] as number;
      if (rank === -1) return NO_MERGE;
      if (slots[at] === left && slots[at + 1] === right) return rank;
      slot = (slot + 1) & this.#mask;
    }
  }

  mergedId(rank: number): number {
    return this.#merged[rank] as number;
  }
}

/** Multiplicative hash (Knuth's golden ratio constant for one half), mixed so that the low bits depend on all. */
function hash(left: number, right: number): number {
  const mixed = Math.imul(left, 0x9e3779b1) ^ Math.imul(right + 0x7f4a7c15, 0x85ebca6b);
  return mixed ^ (mixed >>> 15);
}
