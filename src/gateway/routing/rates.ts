import { maxBackends, Slots } from "./slots.ts";

export interface Rates {
  /** Prompt tokens a millisecond. */
  readonly prefillRate: number;
  /** Milliseconds that one generation adds to each token of another on the same backend. */
  readonly decodeMsPerRow: number;
}

/** What one finished answer says of its backend's speed; times as the backend measured them. */
export interface RateSample {
  /** Prompt tokens computed from the pick to the first token: those ahead in the queue and the answer's own. */
  readonly prefillTokens: number;
  readonly prefillMs: number;
  readonly decodeTokens: number;
  readonly decodeMs: number;
  /** Generations on the backend while this one ran, itself included. */
  readonly rows: number;
}

/** Before anything is measured: of the order of a small model on a few CPU cores. Only ratios between backends matter. */
const prior: Rates = { prefillRate: 1, decodeMsPerRow: 5 };

/** Weight of a new sample: about the last ten count. */
const weight = 0.2;

/** Its peers' mean counts as this many samples of its own: one slow answer must not undo affinity. */
const shrinkage = 4;

/** Shorter ones measure overhead, not throughput. */
const minPrefillTokens = 64;
const minDecodeTokens = 4;

/** Four cells a backend and thread: value and number of samples of each of the two means. */
const cellsPerBackend = 4;
const cellsPerThread = cellsPerBackend * maxBackends;
const prefillCell = 0;
const decodeCell = 2;
/** Cells are integers, which no thread can see half written: 16 bits behind the point. */
const unit = 0x1_0000;

export const ratesBytes = (threads: number): number => threads * cellsPerThread * 4;

export interface BackendRatesOptions {
  readonly slots?: Slots;
  /** `ratesBytes(threads)` of memory that the threads share. */
  readonly memory?: ArrayBufferLike;
  readonly thread?: number;
}

interface Mean {
  readonly value: number;
  readonly samples: number;
}

/**
 * Speeds learned from each backend's own answers, as exponentially weighted means drawn towards the mean of its peers
 * while samples are few: a new backend is neither feared nor flooded. Every thread learns from its own answers in cells
 * of its own; what is known of a backend is their mean, weighted by samples.
 */
export class BackendRates {
  readonly #slots: Slots;
  readonly #cells: Int32Array;
  readonly #own: number;

  constructor(options: BackendRatesOptions = {}) {
    this.#slots = options.slots ?? new Slots();
    this.#cells = new Int32Array(options.memory ?? new ArrayBuffer(ratesBytes(1)));
    this.#own = (options.thread ?? 0) * cellsPerThread;
  }

  observe(backend: string, sample: RateSample): void {
    const slot = this.#slots.of(backend);
    if (slot === undefined) return;
    if (sample.prefillTokens >= minPrefillTokens && sample.prefillMs > 0) {
      this.#add(slot, prefillCell, sample.prefillTokens / sample.prefillMs);
    }
    if (sample.decodeTokens >= minDecodeTokens && sample.decodeMs > 0) {
      this.#add(slot, decodeCell, sample.decodeMs / sample.decodeTokens / Math.max(1, sample.rows));
    }
  }

  /** `peers` = all backends of the pool, this one included. */
  of(backend: string, peers: readonly string[]): Rates {
    return {
      prefillRate: this.#rate(backend, peers, prefillCell, prior.prefillRate),
      decodeMsPerRow: this.#rate(backend, peers, decodeCell, prior.decodeMsPerRow),
    };
  }

  /** What this thread learned. */
  forget(backend: string): void {
    const slot = this.#slots.of(backend);
    if (slot !== undefined) clear(this.#cells, this.#own + slot * cellsPerBackend);
  }

  #rate(backend: string, peers: readonly string[], which: number, fallback: number): number {
    let sum = 0;
    let known = 0;
    for (const peer of peers) {
      const { value, samples } = this.#mean(peer, which);
      if (samples === 0) continue;
      sum += value;
      known++;
    }
    const mean = known === 0 ? fallback : sum / known;
    const own = this.#mean(backend, which);
    return (own.samples * own.value + shrinkage * mean) / (own.samples + shrinkage);
  }

  #mean(backend: string, which: number): Mean {
    const slot = this.#slots.of(backend);
    if (slot === undefined) return { value: 0, samples: 0 };
    let sum = 0;
    let samples = 0;
    for (let at = slot * cellsPerBackend + which; at < this.#cells.length; at += cellsPerThread) {
      const count = this.#cells[at + 1] ?? 0;
      sum += count * (this.#cells[at] ?? 0);
      samples += count;
    }
    return { value: samples === 0 ? 0 : sum / samples / unit, samples };
  }

  #add(slot: number, which: number, sample: number): void {
    const at = this.#own + slot * cellsPerBackend + which;
    const samples = this.#cells[at + 1] ?? 0;
    const scaled = Math.min(sample * unit, 0x7fff_ffff);
    const value = this.#cells[at] ?? 0;
    const next = samples === 0 ? scaled : value + weight * (scaled - value);
    Atomics.store(this.#cells, at, Math.round(next));
    Atomics.store(this.#cells, at + 1, Math.min(samples + 1, 0x7fff_ffff));
  }
}

/** A slot is given to another backend: nothing of the old one's speed is the new one's. */
export function forgetRatesOf(slot: number, memory: ArrayBufferLike): void {
  const cells = new Int32Array(memory);
  for (let at = slot * cellsPerBackend; at < cells.length; at += cellsPerThread) clear(cells, at);
}

function clear(cells: Int32Array, at: number): void {
  for (let cell = at; cell < at + cellsPerBackend; cell++) Atomics.store(cells, cell, 0);
}
