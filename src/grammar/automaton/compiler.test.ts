import { expect, test } from "vitest";
import type { GrammarArtifact, GrammarCompiler, GrammarSource } from "../grammar.ts";
import { createAutomatonCompiler } from "./compiler.ts";
import { ArtifactFault, decodeProgram } from "./format.ts";
import { ByteMatcher } from "./matcher.ts";

const never = new AbortController().signal;

/** Stands for XGrammar: says what it was asked for. */
function recorder(): GrammarCompiler & { readonly asked: GrammarSource[] } {
  const asked: GrammarSource[] = [];
  return {
    asked,
    async compile(source) {
      asked.push(source);
      return { hash: "0".repeat(64), engine: "xgrammar", bytes: new Uint8Array(0) };
    },
    async close() {},
  };
}

const schemaSource = (schema: unknown, strict = false): GrammarSource => ({ kind: "json_schema", schema, strict });

function accepts({ bytes }: GrammarArtifact, text: string): boolean {
  const matcher = new ByteMatcher(decodeProgram(bytes));
  return matcher.bytes(new TextEncoder().encode(text)) && matcher.complete();
}

test("schemas, json_object and patterns become automata; the rest goes to the other engine", async () => {
  const others = recorder();
  const compiler = createAutomatonCompiler({ others });
  const schema = await compiler.compile(schemaSource({ type: "integer" }), never);
  expect(schema.engine).toBe("automaton");
  expect(accepts(schema, "-12")).toBe(true);
  const object = await compiler.compile({ kind: "json_object" }, never);
  expect(accepts(object, '{"a": [1, {"b": null}]}')).toBe(true);
  expect(accepts(object, "[1]")).toBe(false);
  const regex = await compiler.compile({ kind: "regex", pattern: "(yes|no)!{1,3}" }, never);
  expect(accepts(regex, "no!!")).toBe(true);
  expect(accepts(regex, "no")).toBe(false);
  expect(others.asked).toEqual([]);
  const tag: GrammarSource = { kind: "structural_tag", tag: {} };
  const ebnf: GrammarSource = { kind: "ebnf", grammar: 'root ::= "a"' };
  await compiler.compile(tag, never);
  await compiler.compile(ebnf, never);
  expect(others.asked).toEqual([tag, ebnf]);
});

test("one meaning has one hash, however it is written", async () => {
  const compiler = createAutomatonCompiler({ others: recorder() });
  const hash = async (schema: unknown) => (await compiler.compile(schemaSource(schema), never)).hash;
  const plain = await hash({ type: "object", properties: { a: { type: "string" } }, required: ["a"] });
  expect(plain).toMatch(/^[0-9a-f]{64}$/);
  expect(
    await hash({
      title: "T",
      required: ["a"],
      properties: { a: { type: "string", description: "d" } },
      type: "object",
    }),
  ).toBe(plain);
  expect(await hash({ type: "object", properties: { a: { type: "integer" } }, required: ["a"] })).not.toBe(plain);
});

test("a refusal is a 400 with path and keyword, the second time too", async () => {
  const compiler = createAutomatonCompiler({ others: recorder() });
  const source = schemaSource({ type: "object", properties: { a: { type: "array", contains: {} } } });
  for (let i = 0; i < 2; i++) {
    await expect(compiler.compile(source, never)).rejects.toMatchObject({
      status: 400,
      code: "unsupported_schema",
      param: "response_format.json_schema.schema/properties/a/contains",
    });
  }
  await expect(
    compiler.compile(schemaSource({ type: "object", properties: { a: {} } }, true), never),
  ).rejects.toMatchObject({
    param: "response_format.json_schema.schema/additionalProperties",
  });
  await expect(compiler.compile(schemaSource(false), never)).rejects.toMatchObject({ code: "unsupported_schema" });
});

test.each<[string, unknown]>([
  [
    "a pattern that doubles with every step",
    { type: "string", pattern: `^${"(a|aa?)".repeat(20)}(a|b)*a${"(a|b)".repeat(30)}$` },
  ],
  ["counts inside counts", { type: "string", pattern: "^(((a{1,90}b){1,90}c?){0,90}d?){0,90}$" }],
  [
    "very deep nesting",
    Array.from({ length: 500 }).reduce((inner) => ({ type: "object", properties: { a: inner } }), {}),
  ],
])("%s is answered, accepted or refused as too complex", { timeout: 120_000 }, async (_name, schema) => {
  const compiler = createAutomatonCompiler({ others: recorder() });
  const outcome = await compiler.compile(schemaSource(schema), never).catch((error: unknown) => error);
  expect(outcome).toSatisfy(
    (value: { code?: string; engine?: string }) => value.code === "schema_too_complex" || value.engine === "automaton",
  );
});

test("1000 optional properties cost their names and little more", async () => {
  const properties = Object.fromEntries(Array.from({ length: 1000 }, (_, i) => [`property_${i}`, { type: "string" }]));
  const compiler = createAutomatonCompiler({ others: recorder() });
  const artifact = await compiler.compile(schemaSource({ type: "object", properties }), never);
  expect(artifact.bytes.byteLength).toBeLessThan(100_000);
  expect(accepts(artifact, '{"property_7": "x", "property_999": "y"}')).toBe(true);
  expect(accepts(artifact, '{"property_7": "x", "property_7": "y"}')).toBe(false);
});

test("bytes that are no artifact are refused", async () => {
  const compiler = createAutomatonCompiler({ others: recorder() });
  const { bytes } = await compiler.compile(schemaSource({ type: "boolean" }), never);
  expect(() => decodeProgram(bytes.subarray(0, bytes.length - 1))).toThrow(ArtifactFault);
  expect(() => decodeProgram(Uint8Array.of(...bytes, 0))).toThrow(ArtifactFault);
  expect(() => decodeProgram(bytes.with(8, 99))).toThrow(/version/);
});
