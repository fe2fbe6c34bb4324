import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

export interface DrawnSchema {
  readonly id: string;
  readonly schema: unknown;
}

/** A repeatable shuffle (mulberry32), so that two runs with one seed ask about the same schemas. */
function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** `count` schemas, drawn evenly over all lines of `DIR/maskbench/*.jsonl`. */
export function drawSchemas(directory: string, count: number, seed: number): DrawnSchema[] {
  const folder = join(directory, "maskbench");
  const lines = readdirSync(folder)
    .filter((name) => name.endsWith(".jsonl"))
    .sort()
    .flatMap((name) => readFileSync(join(folder, name), "utf8").split("\n"))
    .filter((line) => line !== "");
  const next = random(seed);
  for (let index = lines.length - 1; index > 0; index--) {
    const other = Math.floor(next() * (index + 1));
    [lines[index], lines[other]] = [lines[other] ?? "", lines[index] ?? ""];
  }
  return lines.slice(0, count).map((line) => {
    const { id, schema } = JSON.parse(line) as DrawnSchema;
    return { id, schema };
  });
}
