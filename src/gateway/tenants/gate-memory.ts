/** Tenants that one process can know over its life. */
export const maxTenants = 65_536;

/** What is counted of a tenant: answers inside, requests being prepared, those that wait for that, bytes. */
const counts = 4;

/**
 * Counts of a gateway's tenants that its threads share. Of each count there is one total, which the bounds are about, and
 * one cell a thread, so that what a thread held can be given back when it dies.
 */
export interface GateMemory {
  readonly threads: number;
  readonly counts: ArrayBufferLike;
  /** One word a thread: rung when a place became free that it may be waiting for. */
  readonly bells: ArrayBufferLike;
}

/** Memory is taken from the machine as it is written to. */
export function gateMemory(threads: number): GateMemory {
  return {
    threads,
    counts: new SharedArrayBuffer(maxTenants * (threads + 1) * counts * 4),
    bells: new SharedArrayBuffer(threads * 4),
  };
}

/** A bounded count over all threads. */
export class SharedCount {
  readonly #words: Int32Array;
  readonly #total: number;
  readonly #own: number;

  private constructor(words: Int32Array, total: number, own: number) {
    this.#words = words;
    this.#total = total;
    this.#own = own;
  }

  /** Of a gateway with one thread. */
  static alone(): SharedCount {
    return new SharedCount(new Int32Array(2), 0, 1);
  }

  /** `which` of the counts of the tenant with this slot, as `thread` (from 0) sees it. */
  static shared(memory: GateMemory, slot: number, thread: number, which: number): SharedCount {
    const base = slot * (memory.threads + 1) * counts;
    return new SharedCount(new Int32Array(memory.counts), base + which, base + (1 + thread) * counts + which);
  }

  /** What this thread holds. */
  get own(): number {
    return this.#words[this.#own] ?? 0;
  }

  get total(): number {
    return Atomics.load(this.#words, this.#total);
  }

  /** Adds `amount` unless the total would pass `limit`; `first`: the first one may pass it. False = it would. */
  take(amount: number, limit: number, first = false): boolean {
    for (let total = this.total; ; ) {
      if (total + amount > limit && !(first && total === 0)) return false;
      const found = Atomics.compareExchange(this.#words, this.#total, total, total + amount);
      if (found === total) break;
      total = found;
    }
    // After the total: a thread that dies in between leaves a place taken, which is less than one given twice.
    Atomics.add(this.#words, this.#own, amount);
    return true;
  }

  give(amount: number): void {
    Atomics.sub(this.#words, this.#own, amount);
    Atomics.sub(this.#words, this.#total, amount);
  }
}

/** A thread died: whatever it held is free, and whoever waits for it is told. `tenants` = slots given out so far. */
export function forgetGatesOf(thread: number, memory: GateMemory, tenants: number): void {
  const words = new Int32Array(memory.counts);
  for (let slot = 0; slot < tenants; slot++) {
    const base = slot * (memory.threads + 1) * counts;
    for (let which = 0; which < counts; which++) {
      const held = Atomics.exchange(words, base + (1 + thread) * counts + which, 0);
      Atomics.sub(words, base + which, held);
    }
  }
  ring(memory);
}

/** Wakes every thread that waits for a place. */
export function ring(memory: GateMemory): void {
  const bells = new Int32Array(memory.bells);
  for (let thread = 0; thread < bells.length; thread++) {
    Atomics.add(bells, thread, 1);
    Atomics.notify(bells, thread);
  }
}

/** One thread's ear: while something waits here, it looks again whenever a place has become free in any thread. */
export class GateBell {
  readonly #memory: GateMemory;
  readonly #words: Int32Array;
  readonly #thread: number;
  readonly #waiting = new Set<{ look(): boolean }>();
  #listening = false;

  constructor(memory: GateMemory, thread: number) {
    this.#memory = memory;
    this.#words = new Int32Array(memory.bells);
    this.#thread = thread;
  }

  /** `look` is called at each ring until it returns false: nobody waits there any more. */
  listen(gate: { look(): boolean }): void {
    this.#waiting.add(gate);
    if (!this.#listening) void this.#listen();
  }

  ring(): void {
    ring(this.#memory);
  }

  async #listen(): Promise<void> {
    this.#listening = true;
    for (;;) {
      // Read before looking, so that a ring while looking is not slept through.
      const heard = Atomics.load(this.#words, this.#thread);
      for (const gate of this.#waiting) if (!gate.look()) this.#waiting.delete(gate);
      if (this.#waiting.size === 0) break;
      const rung = Atomics.waitAsync(this.#words, this.#thread, heard);
      if (rung.async) await rung.value;
    }
    this.#listening = false;
  }
}
