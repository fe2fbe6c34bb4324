import type { BackendHealth, BackendInfo } from "../../backends/backend.ts";
import { breakerWords, forgetProbeOf, resetBreaker } from "../dispatch/breaker.ts";
import { budgetWords } from "../dispatch/retry-budget.ts";
import { BlockTable } from "./block-table.ts";
import { type KvIndexMemory, kvIndexMemory } from "./kv-index.ts";
import { forgetLoadOf, ledgerBytes } from "./ledger.ts";
import { forgetRatesOf, ratesBytes } from "./rates.ts";
import { maxBackends, Slots } from "./slots.ts";

/** The tables by which a gateway's threads decide alike. A place in them is a backend's slot, or a pool's. */
export interface RoutingMemory {
  readonly index: KvIndexMemory;
  readonly load: ArrayBufferLike;
  readonly rates: ArrayBufferLike;
  readonly breakers: ArrayBufferLike;
  readonly budgets: ArrayBufferLike;
  /** One word a backend: others go first until then. */
  readonly cooling: ArrayBufferLike;
}

/** What a probe found. */
export interface Seen {
  readonly health: BackendHealth;
  /** Undefined = what was known of it still counts. */
  readonly info: BackendInfo | undefined;
  readonly at: number;
}

/** A thread's part in routing. */
export interface RoutingShare {
  readonly memory: RoutingMemory;
  /** From 0. */
  readonly thread: number;
  readonly backends: Slots;
  readonly pools: Slots;
  /**
   * A backend failed, and the thread that probes should look at it now. That thread is the one without this: it gives out
   * slots, probes and follows KV feeds, and the others are told.
   */
  readonly onSuspect?: (backend: string) => void;
  /** In the thread that probes: what the others have to be told. */
  readonly onSeen?: (backend: string, seen: Seen) => void;
  /** Something that readiness may depend on has changed. */
  readonly onChange?: () => void;
}

/** Memory is taken from the machine as it is written to, not when it is allocated. `maxEventBlocks` as `KvIndex` has it. */
export function routingMemory(threads: number, maxEventBlocks?: number): RoutingMemory {
  const allocate = (bytes: number) => (threads === 1 ? new ArrayBuffer(bytes) : new SharedArrayBuffer(bytes));
  return {
    index: kvIndexMemory(allocate, threads, { maxEventBlocks }),
    load: allocate(ledgerBytes(threads)),
    rates: allocate(ratesBytes(threads)),
    breakers: allocate(maxBackends * breakerWords * 4),
    budgets: allocate(maxBackends * budgetWords * 4),
    cooling: allocate(maxBackends * 4),
  };
}

/**
 * Takes the index's memory from the machine now. Its tables are written to at random places: taken as they fill, their 40 MB
 * would look like a leak for the first hundred thousand requests.
 */
export function takeMemory(memory: RoutingMemory): RoutingMemory {
  for (const table of [memory.index.stored, ...memory.index.routed]) new Uint8Array(table).fill(0);
  return memory;
}

/** Of a gateway with one thread. */
export const alone = (maxEventBlocks?: number): RoutingShare => ({
  memory: routingMemory(1, maxEventBlocks),
  thread: 0,
  backends: new Slots({ given: true }),
  pools: new Slots({ given: true }),
});

export const breakerAt = (memory: RoutingMemory, slot: number): Int32Array =>
  new Int32Array(memory.breakers, slot * breakerWords * 4, breakerWords);

export const budgetAt = (memory: RoutingMemory, slot: number): Int32Array =>
  new Int32Array(memory.budgets, slot * budgetWords * 4, budgetWords);

/** A moment of 32 bits that does not come round for four years. */
const tickMs = 32;

export class Cooling {
  readonly #words: Uint32Array;

  constructor(memory: RoutingMemory) {
    this.#words = new Uint32Array(memory.cooling);
  }

  /** Milliseconds of the clock, within half a tick. */
  of(slot: number): number {
    return (this.#words[slot] ?? 0) * tickMs;
  }

  set(slot: number, until: number): void {
    Atomics.store(this.#words, slot, Math.max(0, Math.round(until / tickMs)));
  }
}

/** A slot has been given to another backend: nothing known of the old one counts. */
export function clearBackend(memory: RoutingMemory, slot: number): void {
  resetBreaker(breakerAt(memory, slot));
  forgetRatesOf(slot, memory.rates);
  new Cooling(memory).set(slot, 0);
  Atomics.store(new Int32Array(memory.index.feeds), slot, 0);
}

export function clearPool(memory: RoutingMemory, slot: number): void {
  const words = budgetAt(memory, slot);
  for (let word = 0; word < words.length; word++) Atomics.store(words, word, 0);
}

/**
 * A thread died with what it had running. Call when it is gone, before another takes its place. `backends` = slots given
 * out so far.
 */
export function forgetThread(memory: RoutingMemory, thread: number, backends: number): void {
  forgetLoadOf(thread, memory.load);
  for (let slot = 0; slot < backends; slot++) forgetProbeOf(thread, breakerAt(memory, slot));
  const routed = memory.index.routed[thread];
  if (routed !== undefined) new BlockTable(routed, 0).repair();
}
