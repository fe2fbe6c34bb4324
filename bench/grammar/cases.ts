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
  /** The instance as Python's `json.dumps(data, ensure_ascii=False)` writes it, or as the case gives it. */
  readonly text: string;
}

export interface Case {
  readonly id: string;
  readonly split: string;
  readonly schema: unknown;
  readonly instances: readonly Instance[];
}

export const SETS = ["maskbench", "jsts", "hostile"] as const;
export type CaseSet = (typeof SETS)[number];

type Reviver = (this: unknown, key: string, value: unknown, context: { readonly source?: string }) => unknown;
// The compiler's library does not know the reviver's third argument yet.
const parseWith: (text: string, reviver: Reviver) => unknown = Function.prototype.call.bind(JSON.parse, JSON);

function written(text: string): unknown {
  return parseWith(text, (_key, value, { source }) =>
    typeof value === "number" && source !== undefined ? new WrittenNumber(source) : value,
  );
}

function spaced(value: unknown): string {
  if (value instanceof WrittenNumber) return value.text;
  if (Array.isArray(value)) return `[${value.map(spaced).join(", ")}]`;
  if (isRecord(value)) {
    return `{${Object.entries(value)
      .map(([key, item]) => `${JSON.stringify(key)}: ${spaced(item)}`)
      .join(", ")}}`;
  }
  return JSON.stringify(value);
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}

/** mulberry32. */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Cases of a set below `directory`, at most `count`; of MaskBench equally many of each split, drawn by the seed. */
export function readCases(directory: string, set: CaseSet, count: number, seed: number): Case[] {
  switch (set) {
    case "maskbench":
      return readMaskBench(join(directory, "maskbench"), count, seed);
    case "jsts":
      return readSuite(join(directory, "jsts", "draft2020-12.json")).slice(0, count);
    case "hostile":
      return readLines(join(directory, "hostile.jsonl")).map(hostileCase).slice(0, count);
  }
}

function readLines(path: string): string[] {
  return readFileSync(path, "utf8")
    .split("\n")
    .filter((line) => line !== "");
}

function readMaskBench(folder: string, count: number, seed: number): Case[] {
  const next = seeded(seed);
  const splits = readdirSync(folder)
    .filter((name) => name.endsWith(".jsonl"))
    .sort();
  const drawn = splits.map((name) => {
    const lines = readLines(join(folder, name));
    for (let i = lines.length - 1; i > 0; i--) {
      const j = Math.floor(next() * (i + 1));
      [lines[i], lines[j]] = [lines[j] ?? "", lines[i] ?? ""];
    }
    return { split: name.replace(/\.jsonl$/, ""), lines };
  });
  const cases: Case[] = [];
  for (let i = 0; cases.length < count && drawn.some(({ lines }) => i < lines.length); i++) {
    for (const { split, lines } of drawn) {
      const line = lines[i];
      if (line !== undefined && cases.length < count) cases.push(maskBenchCase(split, line));
    }
  }
  return cases;
}

function maskBenchCase(split: string, line: string): Case {
  const plain: { id: string; schema: unknown; tests: { valid: boolean }[] } = JSON.parse(line);
  const copy = written(line);
  const tests: readonly unknown[] = isRecord(copy) && Array.isArray(copy.tests) ? copy.tests : [];
  return {
    id: plain.id,
    split,
    schema: plain.schema,
    instances: tests.map((test, i) => ({
      valid: plain.tests[i]?.valid === true,
      text: spaced(isRecord(test) ? test.data : undefined),
    })),
  };
}

interface Group {
  readonly description: string;
  readonly schema: unknown;
  readonly tests: readonly { readonly description: string; readonly valid: boolean }[];
}

/** The required part of the JSON-Schema-Test-Suite: what lies in no folder of optional tests. */
function readSuite(path: string): Case[] {
  const text = readFileSync(path, "utf8");
  const files: Readonly<Record<string, readonly Group[]>> = JSON.parse(text);
  const copies = written(text);
  return Object.entries(files)
    .filter(([file]) => !file.startsWith("optional/"))
    .flatMap(([file, groups]) =>
      groups.map((group, i): Case => {
        const list = isRecord(copies) ? copies[file] : undefined;
        const copy: unknown = Array.isArray(list) ? list[i] : undefined;
        const tests: readonly unknown[] = isRecord(copy) && Array.isArray(copy.tests) ? copy.tests : [];
        return {
          id: `${file} ${group.description}`,
          split: file,
          schema: group.schema,
          instances: tests.map((test, j) => ({
            valid: group.tests[j]?.valid === true,
            text: spaced(isRecord(test) ? test.data : undefined),
          })),
        };
      }),
    );
}

function hostileCase(line: string): Case {
  const {
    id,
    cls,
    schema,
    accept,
    reject,
  }: { id: string; cls: string; schema: unknown; accept: string[]; reject: string[] } = JSON.parse(line);
  return {
    id,
    split: cls,
    schema,
    instances: [...accept.map((text) => ({ valid: true, text })), ...reject.map((text) => ({ valid: false, text }))],
  };
}
