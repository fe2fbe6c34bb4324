// The matcher in the daemon (C++) beside the one in this folder: same artifact, same decisions, masks that say what accept does.
import { beforeAll, expect, test } from "vitest";
import { resolveModel } from "../../models/index.ts";
import { openTokenizer } from "../../tokenizer/node.ts";
import { DEFAULT_SCHEMA_BUDGET } from "../budget.ts";
import type { GrammarPolicy } from "../grammar.ts";
import { DEFAULT_POLICY } from "../policy.ts";
import { Refusal } from "../refusal.ts";
import type { Json } from "../schema/node.ts";
import { type GrammarVocabulary, grammarVocabulary } from "../vocabulary.ts";
import { byteVocabulary, GrammarBench } from "../xgrammar-testing.ts";
import { compileSchema } from "./compile.ts";
import { decodeProgram, encodeProgram } from "./format.ts";
import { ByteMatcher } from "./matcher.ts";
import { type Random, randomText, rootSchema, seeded } from "./testing.ts";

const SEEDS = Number(process.env.SLUICE_FUZZ_SEEDS ?? 40);
const TEXT_LIMIT = 300;
const STOP = 256;
const policies: readonly GrammarPolicy[] = [
  DEFAULT_POLICY,
  { propertyOrder: "any", whitespace: { kind: "bounded", max: 2 } },
];

let vocabulary: GrammarVocabulary;
let encode: (text: string) => readonly number[];
beforeAll(async () => {
  const model = await resolveModel("smollm2", { signal: AbortSignal.timeout(600_000) });
  const tokenizer = await openTokenizer(`gguf:${model.path}`);
  vocabulary = grammarVocabulary(tokenizer.vocabulary);
  encode = (text) => [...tokenizer.encode(text)];
}, 600_000);

function artifactOf(schema: Json, policy: GrammarPolicy): Uint8Array | undefined {
  try {
    return encodeProgram(compileSchema(schema, policy, DEFAULT_SCHEMA_BUDGET));
  } catch (error) {
    if (error instanceof Refusal) return undefined;
    throw error;
  }
}

function* artifacts(seeds: number): Generator<{ seed: number; random: Random; artifact: Uint8Array }> {
  for (let seed = 0; seed < seeds; seed++) {
    const random = seeded(seed + 3_000_000);
    const schema = rootSchema(random, { exact: false });
    for (const policy of policies) {
      const artifact = artifactOf(schema, policy);
      if (artifact !== undefined) yield { seed, random, artifact };
    }
  }
}

/** The text with some of its bytes replaced by any others. */
function damaged(random: Random, text: Uint8Array): Uint8Array {
  return text.map((byte) => (random() < 0.05 ? Math.floor(random() * 256) : byte));
}

test("byte by byte both matchers allow the same and end at the same places", () => {
  const bench = new GrammarBench(byteVocabulary());
  const mask = new Uint32Array(Math.ceil(bench.vocabularySize / 32));
  const faults: string[] = [];
  let compared = 0;
  for (const { seed, random, artifact } of artifacts(SEEDS)) {
    const program = decodeProgram(artifact);
    for (let i = 0; i < 2; i++) {
      const text = new TextEncoder().encode(randomText(random, new ByteMatcher(program), TEXT_LIMIT) ?? "");
      const here = new ByteMatcher(program);
      const there = bench.matcher(artifact);
      for (const byte of i === 0 ? text : damaged(random, text)) {
        there.fillMask(mask);
        const ranges = here.nextBytes();
        for (let other = 0; other < 256; other++) {
          const allowed = ranges.some((low, at) => at % 2 === 0 && low <= other && other <= (ranges[at + 1] ?? 0));
          if (bench.allows(mask, other) !== allowed) faults.push(`${seed}: byte ${other}: here ${allowed}`);
        }
        if (bench.allows(mask, STOP) !== here.complete()) faults.push(`${seed}: end: here ${here.complete()}`);
        compared++;
        const went = here.byte(byte);
        if (there.accept(byte) !== went) faults.push(`${seed}: accept ${byte}: here ${went}`);
        if (!went) break;
      }
    }
  }
  expect(faults.slice(0, 5)).toEqual([]);
  expect(compared).toBeGreaterThan(10 * SEEDS);
});

test("masks over a model's vocabulary say of each token what its bytes do", () => {
  const bench = new GrammarBench(vocabulary);
  const mask = new Uint32Array(Math.ceil(bench.vocabularySize / 32));
  const stop = vocabulary.stopIds[0] ?? -1;
  const bytesOf = (id: number) => vocabulary.bytes.subarray(vocabulary.ends[id - 1] ?? 0, vocabulary.ends[id]);
  const faults: string[] = [];
  let allowedTokens = 0;
  for (const { seed, random, artifact } of artifacts(SEEDS)) {
    const program = decodeProgram(artifact);
    const text = randomText(random, new ByteMatcher(program), TEXT_LIMIT);
    if (text === undefined) continue;
    const here = new ByteMatcher(program);
    const there = bench.matcher(artifact);
    for (const token of encode(text).slice(0, 20)) {
      there.fillMask(mask);
      // Some at random, those that the text goes on with, and those of one or two bytes, which lie at the front.
      const sample = [
        token,
        ...Array.from({ length: 150 }, (_, i) => Math.floor(random() * (i < 50 ? 700 : bench.vocabularySize))),
      ];
      for (const id of sample) {
        if (vocabulary.stopIds.includes(id)) continue;
        const bytes = bytesOf(id);
        const allowed = bytes.length > 0 && here.fork().bytes(bytes);
        if (allowed) allowedTokens++;
        if (bench.allows(mask, id) !== allowed) faults.push(`${seed}: token ${id} after ${text}: bytes say ${allowed}`);
      }
      if (bench.allows(mask, stop) !== here.complete()) faults.push(`${seed}: end within ${text}`);
      const went = here.bytes(bytesOf(token));
      if (there.accept(token) !== went) faults.push(`${seed}: token ${token} of ${text}: bytes say ${went}`);
      // The model's vocabulary has no token for some bytes of rare characters.
      if (!went) break;
    }
  }
  expect(faults.slice(0, 5)).toEqual([]);
  expect(allowedTokens).toBeGreaterThan(20 * SEEDS);
});

test("what was taken back is as if it had never come", () => {
  const bench = new GrammarBench(vocabulary);
  const schema = { type: "object", properties: { a: { type: "string", maxLength: 9 }, b: { type: "integer" } } };
  const artifact = artifactOf(schema, DEFAULT_POLICY) ?? new Uint8Array();
  const matcher = bench.matcher(artifact);
  const tokens = encode('{"a": "some", "b": 12}');
  const masks = tokens.map((token) => {
    const mask = new Uint32Array(Math.ceil(bench.vocabularySize / 32));
    matcher.fillMask(mask);
    expect(matcher.accept(token)).toBe(true);
    return mask;
  });
  expect(matcher.accept(vocabulary.stopIds[0] ?? -1)).toBe(true);
  expect(matcher.terminated()).toBe(true);
  matcher.rollback(1);
  expect(matcher.terminated()).toBe(false);
  for (const mask of masks.toReversed()) {
    matcher.rollback(1);
    const again = new Uint32Array(mask.length);
    matcher.fillMask(again);
    expect(again).toEqual(mask);
  }
});
