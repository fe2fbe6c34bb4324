import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** A number as it was written: `1.0` is no `1` here, and a big integer keeps its digits. */
class WrittenNumber {
  readonly text: string;

  constructor(text: string) {
    this.text = text;
  }
}

export interface Instance {
  readonly valid: boolean;
  /** The instance as Python's `json.dumps(data, ensure_ascii=False)` writes it. */
  readonly text: string;
}

export interface Case {
  readonly id: string;
  readonly split: string;
  readonly schema: unknown;
  readonly instances: readonly Instance[];
}

type Reviver = (this: unknown, key: string, value: unknown, context: { readonly source?: string }) => unknown;
// The compiler's library does not know the reviver's third argument yet.
const parseWith: (text: string, reviver: Reviver) => unknown = Function.prototype.call.bind(JSON.parse, JSON);

function spaced(value: unknown): string {
  if (value instanceof WrittenNumber) return value.text;
  if (Array.isArray(value)) return `[${value.map(spaced).join(", ")}]`;
  if (typeof value === "object" && value !== null) {
    return `{${Object.entries(value)
      .map(([key, item]) => `${JSON.stringify(key)}: ${spaced(item)}`)
      .join(", ")}}`;
  }
  return JSON.stringify(value);
}

function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    // mulberry32
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export { random as seeded };

/** `count` cases drawn over all lines of `DIR/maskbench/*.jsonl`; the same seed draws the same. */
export function drawCases(directory: string, count: number, seed: number): Case[] {
  const folder = join(directory, "maskbench");
  const lines = readdirSync(folder)
    .filter((name) => name.endsWith(".jsonl"))
    .sort()
    .flatMap((name) =>
      readFileSync(join(folder, name), "utf8")
        .split("\n")
        .filter((line) => line !== "")
        .map((line) => ({ split: name.replace(/\.jsonl$/, ""), line })),
    );
  const next = random(seed);
  for (let i = lines.length - 1; i > 0; i--) {
    const j = Math.floor(next() * (i + 1));
    const [a, b] = [lines[i], lines[j]];
    if (a !== undefined && b !== undefined) [lines[i], lines[j]] = [b, a];
  }
  return lines.slice(0, count).map(({ split, line }) => {
    const plain: { id: string; schema: unknown; tests: { valid: boolean }[] } = JSON.parse(line);
    const written = parseWith(line, (_key, value, { source }) =>
      typeof value === "number" && source !== undefined ? new WrittenNumber(source) : value,
    );
    const tests: readonly unknown[] = isRecord(written) && Array.isArray(written.tests) ? written.tests : [];
    const instances = tests.map((test, i): Instance => {
      const data = isRecord(test) ? test.data : undefined;
      return { valid: plain.tests[i]?.valid === true, text: spaced(data) };
    });
    return { id: plain.id, split, schema: plain.schema, instances };
  });
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}
