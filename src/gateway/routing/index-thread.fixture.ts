import { parentPort, workerData } from "node:worker_threads";
import { KvIndex, type KvIndexMemory } from "./kv-index.ts";
import { Slots } from "./slots.ts";

/** One of the threads of the index's fuzz test: looks prompts up, or credits them, until it is told to stop. */
export interface IndexThreadStart {
  readonly memory: KvIndexMemory;
  readonly thread: number;
  readonly slots: ReadonlyMap<string, number>;
  readonly prompts: ReadonlyArray<readonly number[]>;
  /** By prompt and backend: blocks that this backend can ever be said to hold. */
  readonly longest: ReadonlyArray<Readonly<Record<string, number>>>;
  readonly role: "reads" | "routes";
  /** [0]: 1 = stop; [1]: look-ups done by all threads. */
  readonly control: SharedArrayBuffer;
}

export interface IndexThreadReport {
  readonly done: number;
  /** Look-ups that named a backend for a block that it never held. */
  readonly wrong: readonly string[];
  readonly last: ReadonlyArray<Readonly<Record<string, number>>>;
}

const { memory, thread, slots: given, prompts, longest, role, control } = workerData as IndexThreadStart;
const words = new Int32Array(control);
const slots = new Slots({ given: true });
slots.assume(given);
const index = new KvIndex({ memory, thread, slots });
const wrong: string[] = [];
let done = 0;
for (let turn = 0; Atomics.load(words, 0) === 0; turn++) {
  const at = (turn * 7919) % prompts.length;
  const prompt = prompts[at] ?? [];
  const allowed = longest[at] ?? {};
  if (role === "routes") {
    const names = Object.keys(allowed).filter((name) => allowed[name] !== 0);
    const name = names[turn % Math.max(1, names.length)];
    if (name !== undefined) index.routed(name, prompt.slice(0, allowed[name]), 1_000 + (turn % 1_000));
  } else {
    for (const [name, length] of index.match(prompt, 0)) {
      if (length > (allowed[name] ?? 0)) wrong.push(`${name}: ${length} blocks of prompt ${at}`);
    }
    Atomics.add(words, 1, 1);
  }
  done++;
}
const last = prompts.map((prompt) => Object.fromEntries(index.match(prompt, 1_000_000)));
parentPort?.postMessage({ done, wrong, last } satisfies IndexThreadReport);
