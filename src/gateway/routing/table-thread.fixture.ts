import { parentPort, workerData } from "node:worker_threads";
import { BlockTable } from "./block-table.ts";

/** Reads a table that another thread changes all the time, and says what it read that was never written. */
export interface TableThreadStart {
  readonly table: SharedArrayBuffer;
  readonly keys: number;
  /** [0]: look-ups of all threads; each ends when there are enough. */
  readonly done: SharedArrayBuffer;
  readonly enough: number;
}

export interface TableThreadReport {
  readonly found: number;
  readonly wrong: number;
}

/** What the test writes for a key: no other key has it. */
export const writtenFor = (key: number): number => 1_000_000 + key;
/** Equal low halves, so that nothing but whole entries tells keys apart. */
export const lowOf = (key: number): number => key % 3;
export const highOf = (key: number): number => key;

if (parentPort !== null) {
  const { table: buffer, keys, done, enough } = workerData as TableThreadStart;
  const table = new BlockTable(buffer, 0);
  const words = new Int32Array(done);
  let found = 0;
  let wrong = 0;
  while (Atomics.load(words, 0) < enough) {
    for (let turn = 0; turn < 1_000; turn++) {
      const key = turn % keys;
      const value = table.get(lowOf(key), highOf(key), 0);
      if (value === 0) continue;
      found++;
      if (value !== writtenFor(key)) wrong++;
    }
    Atomics.add(words, 0, 1_000);
  }
  parentPort.postMessage({ found, wrong } satisfies TableThreadReport);
}
