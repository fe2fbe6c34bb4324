import { afterAll, beforeAll, expect, test } from "vitest";
import { SluiceError } from "../errors.ts";
import { createVocabulary, TokenKind, type Vocabulary } from "../tokenizer/vocabulary.ts";
import { createGrammarCompiler } from "./compiler.ts";
import type { GrammarCompiler, GrammarSource } from "./grammar.ts";
import { GrammarBench } from "./xgrammar-testing.ts";
import { grammarVocabulary } from "./vocabulary.ts";

const forever = new AbortController().signal;
const schema = (value: unknown, strict = false): GrammarSource => ({ kind: "json_schema", schema: value, strict });
const word = (name: string) => schema({ type: "object", properties: { [name]: { type: "string" } } });
// Small to read and long to compile: many wide automata, no two alike, so that no cache helps.
const slowRules = Array.from({ length: 800 }, (_, i) => {
  const odd = `\\u${(0x4e00 + i).toString(16)}`;
  return `r${i} ::= "${i}" [^a${odd}]{120,127} [^b${odd}]{120,127} "."`;
});
const slow: GrammarSource = {
  kind: "ebnf",
  grammar: `root ::= ${slowRules.map((_, i) => `r${i}`).join(" | ")}\n${slowRules.join("\n")}\n`,
};

let vocabulary: Vocabulary;
let shared: GrammarCompiler;

beforeAll(async () => {
  const encoder = new TextEncoder();
  const bytes = Array.from({ length: 256 }, (_, i) => ({ bytes: Uint8Array.of(i), kind: TokenKind.normal }));
  // Enough tokens that a wide automaton takes its time.
  const letters = "abcdefghijklmnopqrstuvwxyz";
  for (const a of letters)
    for (const b of letters)
      for (const c of letters) bytes.push({ bytes: encoder.encode(a + b + c), kind: TokenKind.normal });
  const end = { bytes: encoder.encode("<end>"), kind: TokenKind.control };
  vocabulary = await createVocabulary([...bytes, end], { stopIds: [bytes.length] });
  shared = createGrammarCompiler({ vocabulary });
});

afterAll(async () => {
  await shared.close();
});

async function failure(work: Promise<unknown>): Promise<SluiceError> {
  try {
    await work;
  } catch (error) {
    if (error instanceof SluiceError) return error;
    throw error;
  }
  throw new Error("it was accepted");
}

test.each<[string, GrammarSource, string, string]>([
  ["a schema", word("a"), '{"a": "x"}', '{"a": 1}'],
  ["any JSON object", { kind: "json_object" }, '{"a": [1, {"b": null}]}', "[1]"],
  ["a pattern, matched from end to end", { kind: "regex", pattern: "(yes|no)!*" }, "yes!", "yes?"],
  ["EBNF", { kind: "ebnf", grammar: 'root ::= "a" b\nb ::= "b"+' }, "abb", "a"],
  [
    "a structural tag",
    {
      kind: "structural_tag",
      tag: {
        format: {
          type: "tag",
          begin: "<n>",
          content: { type: "json_schema", json_schema: { type: "integer" } },
          end: "</n>",
        },
      },
    },
    "<n>5</n>",
    '<n>"5"</n>',
  ],
])("compiles %s to an artifact that the engine follows", async (_name, source, good, bad) => {
  const artifact = await shared.compile(source, forever);
  expect(artifact.hash).toMatch(/^[0-9a-f]{64}$/);
  const bench = new GrammarBench(grammarVocabulary(vocabulary));
  expect(bench.matches(artifact.bytes, good)).toBe(true);
  expect(bench.matches(artifact.bytes, bad)).toBe(false);
});

test("an artifact of another vocabulary is not loaded", async () => {
  const artifact = await shared.compile(word("a"), forever);
  const other = grammarVocabulary(vocabulary);
  const bytes = other.bytes.slice();
  bytes[5] = 6;
  const bench = new GrammarBench({ ...other, bytes });
  expect(() => bench.matcher(artifact.bytes)).toThrow("another vocabulary");
  expect(() => bench.matcher(artifact.bytes.slice(0, 100))).toThrow("artifact");
});

test("equal schemas are compiled once, however they are written and whoever asks", async () => {
  const plain = { type: "object", properties: { once: { type: "string" } }, required: ["once"] };
  const written = {
    required: ["once"],
    title: "T",
    properties: { once: { description: "d", type: "string" } },
    type: "object",
  };
  const artifacts = await Promise.all(
    [...Array.from({ length: 20 }, () => schema(plain)), schema(written)].map((source) =>
      shared.compile(source, forever),
    ),
  );
  expect(new Set(artifacts).size).toBe(1);
});

test("the order of properties is part of the name", async () => {
  const a = await shared.compile(schema({ type: "object", properties: { a: {}, b: {} } }), forever);
  const b = await shared.compile(schema({ type: "object", properties: { b: {}, a: {} } }), forever);
  expect(a.hash).not.toBe(b.hash);
});

test.each<[string, GrammarSource, string, string]>([
  [
    "a keyword",
    schema({ properties: { a: { contains: {} } } }),
    "unsupported_schema",
    "response_format.json_schema.schema/properties/a/contains",
  ],
  ["a pattern", { kind: "regex", pattern: "(?=a)" }, "unsupported_schema", "structured_outputs.regex"],
  [
    "100,000 parentheses",
    { kind: "regex", pattern: "(".repeat(50_000) + ")".repeat(50_000) },
    "schema_too_complex",
    "structured_outputs.regex",
  ],
  [
    "EBNF that does not parse",
    { kind: "ebnf", grammar: "root ::= nobody" },
    "invalid_schema",
    "structured_outputs.grammar",
  ],
  [
    "EBNF of deep groups",
    { kind: "ebnf", grammar: `root ::= ${"(".repeat(9000)}"a"${")".repeat(9000)}` },
    "schema_too_complex",
    "structured_outputs.grammar",
  ],
  [
    "a schema of 65 kB",
    schema({ enum: ["x".repeat(66_000)] }),
    "schema_too_complex",
    "response_format.json_schema.schema",
  ],
  [
    "strict without required",
    schema({ type: "object", properties: { a: {} }, additionalProperties: false }, true),
    "unsupported_schema",
    "response_format.json_schema.schema/required",
  ],
  [
    "strict without additionalProperties",
    schema({ type: "object", properties: {}, required: [] }, true),
    "unsupported_schema",
    "response_format.json_schema.schema/additionalProperties",
  ],
])("%s is a 400 that names its place", async (_name, source, code, param) => {
  expect(await failure(shared.compile(source, forever))).toMatchObject({ status: 400, code, param });
});

test("a compilation over its time is a 400; the next one and those beside it are served", async () => {
  const compiler = createGrammarCompiler({ vocabulary, cpuMs: 3_000 });
  try {
    const [late, beside] = await Promise.all([
      failure(compiler.compile(slow, forever)),
      compiler.compile(word("beside"), forever),
    ]);
    expect(late).toMatchObject({ status: 400, code: "schema_too_complex" });
    expect(beside.bytes.byteLength).toBeGreaterThan(0);
    expect((await compiler.compile(word("after"), forever)).bytes.byteLength).toBeGreaterThan(0);
  } finally {
    await compiler.close();
  }
});

test("a compilation over its memory is a 400", async () => {
  // Node alone needs more than this: the budget is passed as soon as it is looked at.
  const compiler = createGrammarCompiler({ vocabulary, memoryBytes: 16 * 1024 * 1024, children: 1 });
  try {
    expect(await failure(compiler.compile(slow, forever))).toMatchObject({ status: 400, code: "schema_too_complex" });
  } finally {
    await compiler.close();
  }
});

test("a queue that is full says when to come back; a caller that leaves makes room", async () => {
  const compiler = createGrammarCompiler({ vocabulary, children: 1, maxQueued: 1 });
  try {
    const running = compiler.compile(word("running"), forever);
    const leaving = new AbortController();
    const queued = compiler.compile(word("queued"), leaving.signal);
    expect(await failure(compiler.compile(word("refused"), forever))).toMatchObject({
      status: 503,
      code: "grammar_queue_full",
      retryable: true,
    });
    leaving.abort(new Error("left"));
    await expect(queued).rejects.toThrow("left");
    await Promise.all([running, compiler.compile(word("room"), forever)]);
  } finally {
    await compiler.close();
  }
});

test("closing refuses what waits and what comes", async () => {
  const compiler = createGrammarCompiler({ vocabulary, children: 1 });
  const waiting = [compiler.compile(slow, forever), compiler.compile(word("a"), forever)].map(failure);
  await compiler.close();
  for (const error of await Promise.all(waiting)) expect(error.status).toBeGreaterThanOrEqual(500);
  expect((await failure(compiler.compile(word("a"), forever))).code).toBe("grammar_compiler_closed");
});
