/** Retries a second that are free of the share, so that a rarely used pool may still replace a failed attempt (as Finagle's budget). */
const freePerSecond = 10;
const windowSeconds = 10;

/** Words of one budget: two rolling counts. */
export const budgetWords = 2 * windowSeconds;

/**
 * Bounds a pool's retries to a share of its requests over the last ten seconds, plus a small constant rate. When everything
 * fails, retries must not multiply the load that made it fail. `words` is what the threads of a gateway share.
 */
export class RetryBudget {
  readonly #share: number;
  readonly #requests: RollingCount;
  readonly #retries: RollingCount;

  constructor(share: number, words: Int32Array = new Int32Array(budgetWords)) {
    this.#share = share;
    this.#requests = new RollingCount(words.subarray(0, windowSeconds));
    this.#retries = new RollingCount(words.subarray(windowSeconds, budgetWords));
  }

  request(now: number): void {
    this.#requests.add(now, 1);
  }

  /** True, and counted, when one more retry is within the budget. */
  retry(now: number): boolean {
    const allowed = freePerSecond * windowSeconds + this.#share * this.#requests.total(now);
    // Counted first: of two threads that take the last one, both may find it gone, but never both have it.
    this.#retries.add(now, 1);
    if (this.#retries.total(now) <= allowed) return true;
    this.#retries.add(now, -1);
    return false;
  }
}

/** The upper 12 bits of a bucket say which second it counts, the lower 20 how many. */
const countBits = 20;
const countMask = (1 << countBits) - 1;
const stampMask = 0xfff;

/**
 * A count over the last ten seconds in one-second buckets. A bucket that still counts an older second begins anew with
 * the first count of the new one; both happen in one compare-and-swap, so no thread's count is lost. An older second
 * could be taken for the present one only after 5.7 hours in which nothing was counted, and then for one second.
 */
class RollingCount {
  readonly #buckets: Int32Array;

  constructor(buckets: Int32Array) {
    this.#buckets = buckets;
  }

  add(now: number, change: 1 | -1): void {
    const second = Math.floor(now / 1000);
    const index = second % windowSeconds;
    for (;;) {
      const held = this.#buckets[index] ?? 0;
      const count = held >>> countBits === (second & stampMask) ? held & countMask : 0;
      const next = Math.min(countMask, Math.max(0, count + change));
      const word = ((second & stampMask) << countBits) | next;
      if (Atomics.compareExchange(this.#buckets, index, held, word) === held) return;
    }
  }

  total(now: number): number {
    const second = Math.floor(now / 1000);
    let total = 0;
    for (let back = 0; back < windowSeconds && back <= second; back++) {
      const held = this.#buckets[(second - back) % windowSeconds] ?? 0;
      if (held >>> countBits === ((second - back) & stampMask)) total += held & countMask;
    }
    return total;
  }
}
