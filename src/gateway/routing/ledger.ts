import type { BackendLoad } from "../../backends/backend.ts";
import { maxBackends, Slots } from "./slots.ts";

export interface Load {
  /** Prompt tokens accepted or on their way and not yet computed. */
  readonly pendingPrefillTokens: number;
  /** Generations that hold or will hold a row. */
  readonly activeRows: number;
}

/** One generation's share of a backend's load. Every method may be called at any time; after `settle` all are no-ops. */
export interface LedgerEntry {
  /** Prompt tokens that remain to be computed, as the backend tells it. */
  remaining(tokens: number): void;
  settle(): void;
}

export interface LoadLedgerOptions {
  readonly slots?: Slots;
  /** `ledgerBytes(threads)` of memory that the threads share. */
  readonly memory?: ArrayBufferLike;
  readonly thread?: number;
}

const idle: Load = { pendingPrefillTokens: 0, activeRows: 0 };
const unknown: LedgerEntry = { remaining() {}, settle() {} };

/** Two cells a backend, 32 bits each: tokens, rows. One row of them a thread, and a last one for the load of others. */
const cellsPerThread = 2 * maxBackends;

export const ledgerBytes = (threads: number): number => (threads + 1) * cellsPerThread * 4;

/**
 * Load as this gateway knows it, counted at the moment of the pick: a count that waits for a scrape sends bursts to one
 * backend. Picking and counting happen in one turn of the event loop, so no two picks of a thread see the same state; two
 * threads can only where they pick within the same microseconds.
 *
 * Each cell is written by one thread, so nothing is ever lost to a race, and a load is a sum of cells: what every thread
 * has there, and what a scrape showed beyond that (other gateways, callers that use the daemon directly), which is
 * written by the thread that scrapes.
 */
export class LoadLedger {
  readonly #slots: Slots;
  readonly #cells: Int32Array;
  readonly #own: number;
  readonly #foreign: number;

  constructor(options: LoadLedgerOptions = {}) {
    this.#slots = options.slots ?? new Slots();
    this.#cells = new Int32Array(options.memory ?? new ArrayBuffer(ledgerBytes(1)));
    this.#own = (options.thread ?? 0) * cellsPerThread;
    this.#foreign = this.#cells.length - cellsPerThread;
  }

  /** Counts a generation with `uncachedTokens` to prefill on `backend`. The caller must settle it, whatever happens. */
  pick(backend: string, uncachedTokens: number): LedgerEntry {
    const slot = this.#slots.of(backend);
    if (slot === undefined) return unknown;
    const cell = this.#own + 2 * slot;
    let pending = uncachedTokens;
    let open = true;
    this.#add(cell, pending);
    this.#add(cell + 1, 1);
    const remaining = (tokens: number) => {
      if (!open) return;
      this.#add(cell, tokens - pending);
      pending = tokens;
    };
    return {
      remaining,
      settle: () => {
        remaining(0);
        if (open) this.#add(cell + 1, -1);
        open = false;
      },
    };
  }

  loadOf(backend: string): Load {
    const slot = this.#slots.of(backend);
    if (slot === undefined) return idle;
    const [tokens, rows] = this.#ours(slot);
    return {
      pendingPrefillTokens: tokens + (this.#cells[this.#foreign + 2 * slot] ?? 0),
      activeRows: rows + (this.#cells[this.#foreign + 2 * slot + 1] ?? 0),
    };
  }

  /** What a scrape shows beyond our own count belongs to others and is added until the next scrape. Never lowers our own. */
  correct(backend: string, scraped: BackendLoad): void {
    const slot = this.#slots.of(backend);
    if (slot === undefined) return;
    const [tokens, rows] = this.#ours(slot);
    this.#setForeign(
      slot,
      Math.max(0, scraped.pendingPrefillTokens - tokens),
      Math.max(0, scraped.runningRows + scraped.queuedRows - rows),
    );
  }

  /** Nothing is known of others' load any more. Our own entries stay until settled. */
  forgetForeign(backend: string): void {
    const slot = this.#slots.of(backend);
    if (slot !== undefined) this.#setForeign(slot, 0, 0);
  }

  #ours(slot: number): readonly [tokens: number, rows: number] {
    let tokens = 0;
    let rows = 0;
    for (let cell = 2 * slot; cell < this.#foreign; cell += cellsPerThread) {
      tokens += this.#cells[cell] ?? 0;
      rows += this.#cells[cell + 1] ?? 0;
    }
    return [tokens, rows];
  }

  #setForeign(slot: number, tokens: number, rows: number): void {
    Atomics.store(this.#cells, this.#foreign + 2 * slot, tokens);
    Atomics.store(this.#cells, this.#foreign + 2 * slot + 1, rows);
  }

  #add(cell: number, change: number): void {
    Atomics.store(this.#cells, cell, (this.#cells[cell] ?? 0) + change);
  }
}

/** A thread died: what it had running is no load any more. */
export function forgetLoadOf(thread: number, memory: ArrayBufferLike): void {
  const cells = new Int32Array(memory, thread * cellsPerThread * 4, cellsPerThread);
  for (let cell = 0; cell < cells.length; cell++) Atomics.store(cells, cell, 0);
}
