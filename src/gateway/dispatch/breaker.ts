import type { PoolConfig } from "../../config/schema.ts";
import { type SluiceError, unavailable } from "../../errors.ts";

/** What an attempt tells the breaker at its end; only the first call counts. */
export interface Permit {
  succeeded(): void;
  failed(): void;
  /** Says nothing of the backend: the caller left, or the backend was full. */
  neutral(): void;
}

/** Failures that a breaker can be configured to wait for: that many times are remembered. */
export const maxFailures = 1_000;

// The words of one breaker.
const openWord = 0;
const openedAtWord = 1;
/** 0, or the thread that probes, from 1. */
const probeWord = 2;
/** Failures ever counted; the next time goes to this place of the ring. */
const countWord = 3;
/** Failures counted when the last success came: those before are forgotten. */
const sinceWord = 4;
const ringAt = 5;
export const breakerWords = ringAt + maxFailures;

export interface BreakerCells {
  /** `breakerWords` words, shared by all threads. */
  readonly words: Int32Array;
  /** From 0. */
  readonly thread: number;
}

/**
 * One backend's circuit breaker. Closed: failures are counted in a sliding window. Open: nobody is sent there until
 * `probeAfter`. Then half-open: one attempt at a time, whose end decides. Times in milliseconds of the caller's clock,
 * which all threads have in common; they are kept in 32 bits, so a failure 49 days ago may count once more.
 *
 * All threads have one state: each failure takes its own place in the ring, and whoever brings the count over the limit
 * opens; the probe goes to the thread whose compare-and-swap was first.
 */
export class Breaker {
  readonly #config: PoolConfig["breaker"];
  readonly #words: Int32Array;
  readonly #me: number;

  constructor(config: PoolConfig["breaker"], cells: BreakerCells = { words: new Int32Array(breakerWords), thread: 0 }) {
    this.#config = config;
    this.#words = cells.words;
    this.#me = cells.thread + 1;
  }

  state(now: number): "closed" | "open" | "half-open" {
    if (this.#words[openWord] === 0) return "closed";
    return elapsed(now, this.#words[openedAtWord] ?? 0) >= this.#config.probeAfter ? "half-open" : "open";
  }

  admits(now: number): boolean {
    const state = this.state(now);
    return state === "closed" || (state === "half-open" && this.#words[probeWord] === 0);
  }

  /**
   * Call only when `admits`; `clock` is read again when the attempt ends. Throws SluiceError `breaker_probing` where another
   * thread's probe came first by an instant.
   */
  begin(clock: { now(): number }): Permit {
    const probe = this.#probes(clock.now());
    let open = true;
    const end = (action: () => void) => () => {
      if (!open) return;
      open = false;
      action();
      // Last, so that nobody finds the breaker half-open and free before the probe's outcome is written down.
      if (probe) Atomics.compareExchange(this.#words, probeWord, this.#me, 0);
    };
    return {
      succeeded: end(() => this.reset()),
      failed: end(() => this.#fail(clock.now(), probe)),
      neutral: end(() => {}),
    };
  }

  /** Forgets what failed; an attempt that began before still ends by its own permit. */
  reset(): void {
    const words = this.#words;
    const count = Atomics.load(words, countWord);
    // Nearly every answer comes here and finds nothing to change.
    if (words[sinceWord] !== count) Atomics.store(words, sinceWord, count);
    if (words[openWord] !== 0) Atomics.store(words, openWord, 0);
  }

  /** Whether the attempt that begins now is the probe. Throws where it may not begin any more. */
  #probes(now: number): boolean {
    if (this.state(now) !== "half-open") return false;
    if (Atomics.compareExchange(this.#words, probeWord, 0, this.#me) !== 0) throw comesLate();
    // Another's probe may have ended between the look and the swap.
    const state = this.state(now);
    if (state === "half-open") return true;
    Atomics.compareExchange(this.#words, probeWord, this.#me, 0);
    if (state === "open") throw comesLate();
    return false;
  }

  #fail(now: number, probe: boolean): void {
    const words = this.#words;
    const index = Atomics.add(words, countWord, 1);
    Atomics.store(words, ringAt + ((index >>> 0) % maxFailures), Math.floor(now) | 0);
    if (!probe && this.#recent(now) < this.#config.failures) return;
    Atomics.store(words, openedAtWord, Math.floor(now) | 0);
    Atomics.store(words, openWord, 1);
  }

  /**
   * Failures within the window since the last success. A thread counts after it has written its own down, so of several that
   * fail at once the last one sees them all.
   */
  #recent(now: number): number {
    const count = Atomics.load(this.#words, countWord);
    const known = Math.min((count - Atomics.load(this.#words, sinceWord)) >>> 0, maxFailures);
    let recent = 0;
    for (let back = 1; back <= known; back++) {
      const at = Atomics.load(this.#words, ringAt + (((count - back) >>> 0) % maxFailures));
      if (elapsed(now, at) < this.#config.window) recent++;
    }
    return recent;
  }
}

const comesLate = (): SluiceError =>
  unavailable("breaker_probing", "A backend is being tried out by another request.", { retryAfterMs: 100 });

/** Milliseconds since `then`; a moment that another thread wrote down just now may lie a little ahead. */
const elapsed = (now: number, then: number): number => Math.max(0, (Math.floor(now) - then) | 0);

/** A thread died while it probed: the next one may. */
export function forgetProbeOf(thread: number, words: Int32Array): void {
  Atomics.compareExchange(words, probeWord, thread + 1, 0);
}

/** As a new one. */
export function resetBreaker(words: Int32Array): void {
  for (let word = 0; word < ringAt; word++) Atomics.store(words, word, 0);
}
