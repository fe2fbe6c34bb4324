import { expect, test } from "vitest";
import { DEFAULT_SCHEMA_BUDGET } from "../budget.ts";
import type { GrammarPolicy } from "../grammar.ts";
import { DEFAULT_POLICY } from "../policy.ts";
import type { Json } from "../schema/node.ts";
import { compileSchema } from "./compile.ts";
import { decodeProgram, encodeProgram } from "./format.ts";
import { ByteMatcher } from "./matcher.ts";

const anyOrder: GrammarPolicy = { ...DEFAULT_POLICY, propertyOrder: "any" };

/** Fails with the texts that came out the other way. */
function check(schema: Json, accept: readonly string[], reject: readonly string[], policy = DEFAULT_POLICY): void {
  const program = decodeProgram(encodeProgram(compileSchema(schema, policy, DEFAULT_SCHEMA_BUDGET)));
  const matches = (text: string) => {
    const matcher = new ByteMatcher(program);
    return matcher.bytes(new TextEncoder().encode(text)) && matcher.complete();
  };
  expect({
    wronglyStopped: accept.filter((text) => !matches(text)),
    wronglyAllowed: reject.filter(matches),
  }).toEqual({ wronglyStopped: [], wronglyAllowed: [] });
}

test.each<[string, Json, readonly string[], readonly string[]]>([
  [
    "lengths count characters, however they are spelt",
    { type: "string", minLength: 2, maxLength: 5 },
    ['"ab"', '"abcde"', '"é\\u00e9\\ud83d\\ude00x"', '"日本語"'],
    ['"a"', '"abcdef"', '"abcdé\\u00e9"', '"\\ud800a"'],
  ],
  [
    "a pattern and lengths that no rewriting brings together",
    { type: "string", pattern: "^[a-z]+(-[a-z]+)*$", minLength: 3, maxLength: 6 },
    ['"abc"', '"a-b-c"', '"abcdef"'],
    ['"ab"', '"abcdefg"', '"a-b-c-d"', '"a--b"'],
  ],
  [
    "long counts in a pattern",
    { type: "string", pattern: "^([a-z]{1,200}\\.){2,300}x$" },
    ['"a.b.x"', `"${"a".repeat(200)}.b.x"`],
    ['"a.x"', `"${"a".repeat(201)}.b.x"`],
  ],
  [
    "item counts",
    { type: "array", items: { type: "integer" }, minItems: 2, maxItems: 400 },
    ["[1,2]", "[1, 2,3]"],
    ["[1]", "[1,]"],
  ],
  [
    "a tuple and what follows it",
    { type: "array", prefixItems: [{ type: "integer" }, { type: "string" }], items: { type: "null" }, minItems: 1 },
    ["[1]", '[1,"a"]', '[1, "a", null,null]'],
    ["[]", '["a"]', "[1,null]", '[1,"a",1]'],
  ],
  [
    "distinct items in any order, one the beginning of another",
    { type: "array", items: { enum: ["a", "ab", 1, 12, null] }, uniqueItems: true, minItems: 1 },
    ['["ab","a",12, 1,null]'],
    ["[]", '["a","a"]', "[1,1]", "[12,null,12]"],
  ],
  [
    "alternatives that begin alike",
    {
      anyOf: [
        { type: "object", properties: { a: { const: 1 } }, required: ["a"], additionalProperties: false },
        { type: "object", properties: { a: { type: "integer" }, b: { type: "string" } }, required: ["a", "b"] },
      ],
    },
    ['{"a":1}', '{"a": 12,"b":""}', '{"a":1,"b":""}'],
    ['{"a":2}', '{"b":""}'],
  ],
  [
    "what one branch of allOf excludes from another",
    {
      allOf: [{ enum: [1, "a", null] }, { not: { type: "string" } }, { not: { not: { type: ["integer", "string"] } } }],
    },
    ["1"],
    ['"a"', "null"],
  ],
  [
    "a count of members",
    {
      type: "object",
      properties: { a: {}, b: {}, c: {} },
      minProperties: 2,
      maxProperties: 2,
      additionalProperties: false,
    },
    ['{"a":1,"c":2}', '{"b":1,"c":2}'],
    ['{"a":1}', '{"a":1,"b":1,"c":1}', "{}"],
  ],
  [
    "recursion",
    {
      $ref: "#/$defs/n",
      $defs: {
        n: {
          type: "object",
          properties: { v: { type: "integer" }, kids: { type: "array", items: { $ref: "#/$defs/n" } } },
          required: ["v"],
        },
      },
    },
    ['{"v":1,"kids":[{"v":2},{"v":3,"kids":[]}]}'],
    ['{"v":1,"kids":[{"kids":[]}]}', '{"v":1,"kids":[{"v":2}}'],
  ],
  [
    "an object as a constant",
    { const: { a: [1, 2], b: {} } },
    ['{"a":[1, 2],"b":{}}'],
    ['{"a":[1]}', '{"b":{},"a":[1,2]}'],
  ],
  ["700 values", { enum: Array.from({ length: 700 }, (_, i) => `v${i}`) }, ['"v0"', '"v699"'], ['"v700"', '"v"']],
])("%s", (_name, schema, accept, reject) => check(schema, accept, reject));

test("members come in the schema's order, each once, or in any", () => {
  const schema = {
    type: "object",
    properties: { a: { type: "string" }, b: { type: "integer" }, c: { type: "boolean" } },
    required: ["b"],
  };
  check(
    schema,
    ['{"b":1}', '{"a":"","b":1,"c":true}'],
    ['{"a":""}', '{"c":true,"b":1}', '{"b":1,"b":2}', '{"b":1,"d":2}'],
  );
  check(schema, ['{"c":true,"b":1}', '{"d":[{}],"b":1}'], ['{"b":1,"b":2}', '{"b":1,"a":3}', "{}"], anyOrder);
});

test("a listed name never comes as another one, and each other name obeys the patterns that it matches", () => {
  check(
    {
      type: "object",
      properties: { name: { type: "string" } },
      required: ["name"],
      additionalProperties: { type: "integer" },
    },
    ['{"name":"x"}', '{"name":"x","nam":1,"namee":3,"z\\"":1}'],
    ['{"name":"x","name":1}', '{"name":"x","n\\u0061me":1}', '{"name":"x","z":"q"}'],
  );
  check(
    {
      type: "object",
      patternProperties: { "^x": { type: "integer" }, y$: { minimum: 3 } },
      additionalProperties: false,
    },
    ["{}", '{"x":1,"zy":3.5,"xy":4}', '{"zy":"any type but a small number"}'],
    ['{"xy":1}', '{"xy":3.5}', '{"z":1}', '{"x":"q"}'],
  );
});

test("white space is optional and bounded", () => {
  const schema = { type: "object", properties: { a: { type: "array", items: { type: "null" } } }, required: ["a"] };
  check(schema, ['{"a":[]}', '{"a": [null, null]}'], ['{ "a":[]}', '{"a":  []}', '{"a":[\n]}']);
  const loose = { ...DEFAULT_POLICY, whitespace: { kind: "bounded", max: 2 } } as const;
  check(schema, ['{\n "a": [ null,\n\tnull ] }', '{"a":[]}'], ['{"a":   []}', '{"a" :[]}'], loose);
});
