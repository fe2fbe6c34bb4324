import { SluiceError } from "../../errors.ts";
import { type GateBell, type GateMemory, SharedCount } from "./gate-memory.ts";

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

/** A 32-bit count of bytes holds less; a tenant with more than this waiting would end the process anyway. */
const mostBytes = 2 ** 31 - 1;

export interface GateShare {
  readonly memory: GateMemory;
  /** From 0. */
  readonly thread: number;
  readonly slot: number;
  readonly bell: GateBell;
}

interface Turn {
  readonly limits: GateLimits;
  take(): void;
}

/**
 * What one tenant has in the gateway, all threads together; its limits come with each call, since a reload may change them
 * while it is there. Preparing (template, tokens, grammar) comes before any limit is known, so it has a gate of its own:
 * one tenant's flood waits in one tenant's queue. Within a thread it is first come first served; of several threads the
 * one that wakes first goes on.
 */
export class TenantGate {
  readonly #inside: SharedCount;
  readonly #preparing: SharedCount;
  readonly #waiting: SharedCount;
  readonly #bytes: SharedCount;
  readonly #bell: GateBell | undefined;
  readonly #queue: Turn[] = [];
  #reservedTokens = 0;

  constructor(share?: GateShare) {
    const count = (which: number): SharedCount =>
      share === undefined ? SharedCount.alone() : SharedCount.shared(share.memory, share.slot, share.thread, which);
    this.#inside = count(0);
    this.#preparing = count(1);
    this.#waiting = count(2);
    this.#bytes = count(3);
    this.#bell = share?.bell;
  }

  // This thread's part of each: what metrics add up.

  get inside(): number {
    return this.#inside.own;
  }

  get preparing(): number {
    return this.#preparing.own;
  }

  get bytes(): number {
    return this.#bytes.own;
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
    if (!this.#inside.take(places, limits.concurrency)) {
      throw tooMany("concurrency_limit_exceeded", `At most ${limits.concurrency} answers of this key may run at once.`);
    }
    return once(() => this.#inside.give(places));
  }

  /** Makes room for a body of at most `bytes`; the function gives it back, once. Throws 429. */
  hold(limits: GateLimits, bytes: number): () => void {
    const counted = Math.min(bytes, mostBytes);
    if (!this.#bytes.take(counted, Math.min(limits.bytes, mostBytes), true)) {
      throw tooMany("too_many_bytes", "Too much of this key's input is waiting to be prepared.");
    }
    return once(() => this.#bytes.give(counted));
  }

  /**
   * Runs `work` when a place is free, first come first served. Throws 429 when too many wait, the signal's reason when it
   * aborts.
   */
  async prepare<Result>(limits: GateLimits, signal: AbortSignal, work: () => Promise<Result>): Promise<Result> {
    const free = this.#waiting.total === 0 && this.#preparing.take(1, limits.preparing);
    if (!free) await this.#turn(limits, signal);
    try {
      return await work();
    } finally {
      this.#leave();
    }
  }

  #leave(): void {
    const othersWait = this.#waiting.total > this.#queue.length;
    const next = othersWait ? undefined : this.#queue.shift();
    if (next !== undefined) {
      // The place goes to the next in line, so a newcomer cannot slip in between.
      this.#waiting.give(1);
      next.take();
      return;
    }
    this.#preparing.give(1);
    // Read again: a thread that began to wait after the first look has either seen the place free or is counted now. All
    // are rung for, this one too, or a thread with a queue of its own would never let another's go on.
    if (this.#waiting.total > 0) this.#bell?.ring();
  }

  /** Lets those in whom there is a place for; false = nobody waits here any more. */
  look(): boolean {
    for (let next = this.#queue[0]; next !== undefined; next = this.#queue[0]) {
      if (!this.#preparing.take(1, next.limits.preparing)) return true;
      this.#queue.shift();
      this.#waiting.give(1);
      next.take();
    }
    return false;
  }

  #turn(limits: GateLimits, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (!this.#waiting.take(1, limits.waiting)) {
      throw tooMany("too_many_preparing", "Too many requests of this key are waiting to be prepared.");
    }
    return new Promise((resolve, reject) => {
      const leave = (): void => {
        this.#queue.splice(this.#queue.indexOf(turn), 1);
        this.#waiting.give(1);
        reject(signal.reason);
      };
      const turn: Turn = {
        limits,
        take() {
          signal.removeEventListener("abort", leave);
          resolve();
        },
      };
      this.#queue.push(turn);
      signal.addEventListener("abort", leave, { once: true });
      // A place that became free before this one was counted as waiting was rung for nobody.
      if (this.look()) this.#bell?.listen(this);
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
