/** Retries a second that are free of the share, so that a rarely used pool may still replace a failed attempt (as Finagle's budget). */
const freePerSecond = 10;
const windowSeconds = 10;

/**
 * Bounds a pool's retries to a share of its requests over the last ten seconds, plus a small constant rate. When everything
 * fails, retries must not multiply the load that made it fail.
 */
export class RetryBudget {
  readonly #share: number;
  readonly #requests = new RollingCount();
  readonly #retries = new RollingCount();

  constructor(share: number) {
    this.#share = share;
  }

  request(now: number): void {
    this.#requests.add(now);
  }

  /** True, and counted, when one more retry is within the budget. */
  retry(now: number): boolean {
    const allowed = freePerSecond * windowSeconds + this.#share * this.#requests.total(now);
    if (this.#retries.total(now) + 1 > allowed) return false;
    this.#retries.add(now);
    return true;
  }
}

/** A count over the last ten seconds in one-second buckets. */
class RollingCount {
  readonly #buckets: number[] = new Array<number>(windowSeconds).fill(0);
  #second = 0;

  add(now: number): void {
    this.#advance(now);
    const index = this.#second % windowSeconds;
    this.#buckets[index] = (this.#buckets[index] ?? 0) + 1;
  }

  total(now: number): number {
    this.#advance(now);
    return this.#buckets.reduce((sum, count) => sum + count, 0);
  }

  #advance(now: number): void {
    const second = Math.floor(now / 1000);
    const passed = Math.min(second - this.#second, windowSeconds);
    for (let step = 1; step <= passed; step++) this.#buckets[(second - passed + step) % windowSeconds] = 0;
    this.#second = Math.max(this.#second, second);
  }
}
