import { type RoutingMemory, routingMemory, takeMemory } from "../../routing/share.ts";
import { type GateMemory, gateMemory } from "../../tenants/gate-memory.ts";

/** All that the threads of one gateway have in common. Each table says itself who writes it. */
export interface SharedMemory {
  readonly threads: number;
  readonly routing: RoutingMemory;
  readonly gates: GateMemory;
  /** One word a thread, see `Readiness`. */
  readonly ready: SharedArrayBuffer;
}

export function sharedMemory(threads: number, maxEventBlocks: number): SharedMemory {
  const ready = new SharedArrayBuffer(threads * 4);
  return { threads, routing: takeMemory(routingMemory(threads, maxEventBlocks)), gates: gateMemory(threads), ready };
}

const states = { absent: 0, waiting: 1, ready: 2 } as const;

/** The gateway is ready when every thread that listens is: a caller's connection may come to any of them. */
export class Readiness {
  readonly #words: Int32Array;

  constructor(memory: SharedMemory) {
    this.#words = new Int32Array(memory.ready);
  }

  set(thread: number, state: keyof typeof states): void {
    Atomics.store(this.#words, thread, states[state]);
  }

  get everywhere(): boolean {
    return this.#words.includes(states.ready) && !this.#words.includes(states.waiting);
  }
}
