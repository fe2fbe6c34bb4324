import { beforeAll, expect, test } from "vitest";
import { resolveModel } from "../models/index.ts";
import { openTokenizer } from "../tokenizer/node.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { GrammarBench } from "./xgrammar-testing.ts";
import { toolGrammar } from "./tools.ts";
import { grammarVocabulary } from "./vocabulary.ts";

// Tokens of several characters, tokens that cross the borders of values, and characters split over tokens: what a byte
// vocabulary cannot show.

let tokenizer: Tokenizer;
let bench: GrammarBench;

beforeAll(async () => {
  const { path } = await resolveModel("smollm2", { signal: AbortSignal.timeout(60_000) });
  tokenizer = await openTokenizer(`gguf:${path}`);
  bench = new GrammarBench(grammarVocabulary(tokenizer.vocabulary));
});

const person = {
  type: "object",
  properties: {
    name: { type: "string", maxLength: 10 },
    age: { type: "integer", minimum: 0, maximum: 130 },
    tags: { type: "array", items: { enum: ["a", "b"] }, maxItems: 2 },
    born: { type: "string", format: "date" },
  },
  required: ["name", "age"],
  additionalProperties: false,
} as const;

test.each<[string, boolean]>([
  ['{"name": "Ada", "age": 36}', true],
  ['{"name":"Ada","age":36,"tags":["a","b"],"born":"1815-12-10"}', true],
  ['{"name": "日本語😀", "age": 0}', true],
  ['{"name": "0123456789", "age": 130}', true],
  ['{"name": "0123456789a", "age": 1}', false],
  ['{"name": "Ada", "age": 131}', false],
  ['{"name": "Ada", "age": 36', false],
  ['{"name": "Ada"}', false],
  ['{"name": "Ada", "age": 36, "tags": ["c"]}', false],
  ['{"name": "Ada", "age": 36, "born": "1815-13-10"}', false],
  ['{"name": "Ada", "age": 36, "more": 1}', false],
])("%s: allowed token by token and complete: %s", async (text, complete) => {
  const artifact = await bench.compile({ kind: "json_schema", schema: person, strict: false });
  expect(bench.follow(artifact, [...tokenizer.encode(text)]) === "complete").toBe(complete);
});

test("control tokens are never allowed, and stop tokens only at the end", async () => {
  const artifact = await bench.compile({ kind: "json_schema", schema: person, strict: false });
  const matcher = bench.matcher(artifact);
  const mask = new Uint32Array(Math.ceil(bench.vocabularySize / 32));
  for (const token of tokenizer.encode('{"name": "Ada", "age": 36}')) {
    matcher.fillMask(mask);
    expect(tokenizer.vocabulary.stopIds.some((id) => bench.allows(mask, id))).toBe(false);
    expect(matcher.accept(token)).toBe(true);
  }
  matcher.fillMask(mask);
  const allowed = Array.from({ length: bench.vocabularySize }, (_, id) => id).filter((id) => bench.allows(mask, id));
  expect(allowed).toEqual([...tokenizer.vocabulary.stopIds]);
});

test("a call's mark is found across tokens", async () => {
  const source = toolGrammar({ tools: [{ function: { name: "now" }, strict: false }], choice: "auto", parallel: true });
  if (source === undefined) throw new Error("no grammar");
  const artifact = await bench.compile(source);
  const call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>';
  expect(bench.follow(artifact, [...tokenizer.encode(`Sure. ${call}`)])).toBe("complete");
  expect(bench.follow(artifact, [...tokenizer.encode(`Sure. ${call.replace("now", "never")}`)])).toHaveProperty(
    "stoppedAt",
  );
});
