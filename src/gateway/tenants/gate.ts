import { SluiceError } from "../../errors.ts";

export interface GateLimits {
  /** Requests being prepared at once. */
  readonly preparing: number;
  /** Requests that may wait for that. */
  readonly waiting: number;
  /** Answers anywhere between the key check and their end; a request with `n` choices is `n` of them. */
  readonly concurrency: number;
  /** Bodies that have been sent and are not prepared, all together. */
  readonly bytes: number;
}

const tooMany = (code: string, message: string): SluiceError =>
  new SluiceError({ status: 429, type: "rate_limit_error", code, message, retryable: true, retryAfterMs: 1_000 });

/**
 * What one tenant has in the gateway; its limits come with each call, since a reload may change them while it is there.
 * Preparing (template, tokens, grammar) comes before any limit is known, so it has a
 * gate of its own: one tenant's flood waits in one tenant's queue.
 */
export class TenantGate {
  #inside = 0;
  #preparing = 0;
  #bytes = 0;
  #reservedTokens = 0;
  readonly #queue: Array<() => void> = [];

  get inside(): number {
    return this.#inside;
  }

  get preparing(): number {
    return this.#preparing;
  }

  get bytes(): number {
    return this.#bytes;
  }

  get waiting(): number {
    return this.#queue.length;
  }

  /** Tokens that running requests may still come to cost. */
  get reservedTokens(): number {
    return this.#reservedTokens;
  }

  reserve(tokens: number): void {
    this.#reservedTokens += tokens;
  }

  /** Takes `places` of the tenant's; the function gives them back, once. Throws 429. */
  enter(limits: GateLimits, places = 1): () => void {
    if (this.#inside + places > limits.concurrency) {
      throw tooMany("concurrency_limit_exceeded", `At most ${limits.concurrency} answers of this key may run at once.`);
    }
    this.#inside += places;
    return once(() => {
      this.#inside -= places;
    });
  }

  /** Makes room for a body of at most `bytes`; the function gives it back, once. Throws 429. */
  hold(limits: GateLimits, bytes: number): () => void {
    if (this.#bytes > 0 && this.#bytes + bytes > limits.bytes) {
      throw tooMany("too_many_bytes", "Too much of this key's input is waiting to be prepared.");
    }
    this.#bytes += bytes;
    return once(() => {
      this.#bytes -= bytes;
    });
  }

  /**
   * Runs `work` when a place is free, first come first served. Throws 429 when too many wait, the signal's reason when it
   * aborts.
   */
  async prepare<Result>(limits: GateLimits, signal: AbortSignal, work: () => Promise<Result>): Promise<Result> {
    if (this.#preparing >= limits.preparing) await this.#turn(limits, signal);
    else this.#preparing++;
    try {
      return await work();
    } finally {
      // The place goes to the next in line, so a newcomer cannot slip in between.
      const next = this.#queue.shift();
      if (next === undefined) this.#preparing--;
      else next();
    }
  }

  #turn(limits: GateLimits, signal: AbortSignal): Promise<void> {
    if (this.#queue.length >= limits.waiting) {
      throw tooMany("too_many_preparing", "Too many requests of this key are waiting to be prepared.");
    }
    signal.throwIfAborted();
    return new Promise((resolve, reject) => {
      const leave = (): void => {
        this.#queue.splice(this.#queue.indexOf(turn), 1);
        reject(signal.reason);
      };
      const turn = (): void => {
        signal.removeEventListener("abort", leave);
        resolve();
      };
      this.#queue.push(turn);
      signal.addEventListener("abort", leave, { once: true });
    });
  }
}

function once(work: () => void): () => void {
  let done = false;
  return () => {
    if (done) return;
    done = true;
    work();
  };
}
