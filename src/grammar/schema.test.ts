import { expect, test } from "vitest";
import { DEFAULT_SCHEMA_BUDGET } from "./budget.ts";
import { DEFAULT_POLICY } from "./policy.ts";
import { Refusal } from "./refusal.ts";
import type { Json } from "./schema/node.ts";
import { schemaToEbnf } from "./schema.ts";
import { byteVocabulary, GrammarBench } from "./xgrammar-testing.ts";

const bench = new GrammarBench(byteVocabulary());

function refusal(schema: Json): Refusal | undefined {
  try {
    schemaToEbnf(schema, DEFAULT_POLICY, DEFAULT_SCHEMA_BUDGET);
    return undefined;
  } catch (error) {
    if (error instanceof Refusal) return error;
    throw error;
  }
}

/** Fails with the texts that came out the other way. */
async function check(schema: Json, accept: readonly string[], reject: readonly string[]): Promise<void> {
  const artifact = await bench.compile({ kind: "json_schema", schema, strict: false });
  expect({
    wronglyStopped: accept.filter((text) => !bench.matches(artifact, text)),
    wronglyAllowed: reject.filter((text) => bench.matches(artifact, text)),
  }).toEqual({ wronglyStopped: [], wronglyAllowed: [] });
}

test.each<[string, Json, string]>([
  ["contains", { properties: { a: { type: "array", contains: { type: "string" } } } }, "/properties/a/contains"],
  ["minContains", { type: "array", minContains: 2 }, "/minContains"],
  ["not of a pattern", { type: "string", not: { pattern: "a" } }, "/not"],
  ["uniqueItems of free strings", { type: "array", items: { type: "string" }, uniqueItems: true }, "/uniqueItems"],
  [
    "overlapping oneOf",
    {
      oneOf: [
        { type: "string", pattern: "^a" },
        { type: "string", maxLength: 3 },
      ],
    },
    "/oneOf",
  ],
  ["multipleOf of a fraction", { type: "number", multipleOf: 0.01 }, "/multipleOf"],
  ["multipleOf over a wide range", { type: "integer", multipleOf: 7 }, ""],
  [
    "two patterns",
    {
      allOf: [
        { type: "string", pattern: "a+" },
        { type: "string", pattern: "b+" },
      ],
    },
    "/allOf",
  ],
  ["look-ahead", { type: "string", pattern: "^(?=a)b$" }, "/pattern"],
  ["look-behind", { type: "string", pattern: "(?<!a)b" }, "/pattern"],
  ["a back reference", { type: "string", pattern: "^(a)\\1$" }, "/pattern"],
  ["a word boundary", { type: "string", pattern: "\\bab" }, "/pattern"],
  ["a Unicode class", { type: "string", pattern: "^\\p{L}+$" }, "/pattern"],
  ["unevaluatedProperties beside allOf", { allOf: [{}], unevaluatedProperties: false }, "/unevaluatedProperties"],
  ["unevaluatedItems beside anyOf", { anyOf: [{}], unevaluatedItems: false }, "/unevaluatedItems"],
  ["$dynamicRef", { items: { $dynamicRef: "#x" } }, "/items/$dynamicRef"],
  ["a remote $ref", { properties: { a: { $ref: "https://example.com/s.json" } } }, "/properties/a/$ref"],
  ["a $ref to nothing", { $ref: "#/$defs/none" }, "/$ref"],
  ["a $ref that only means itself", { $ref: "#" }, ""],
  ["a format that cannot be guaranteed", { type: "string", format: "idn-email" }, "/format"],
  [
    "propertyNames beyond one string",
    { propertyNames: { anyOf: [{ maxLength: 1 }, { pattern: "^a" }] }, type: "object" },
    "/propertyNames",
  ],
  ["an unknown type", { type: "text" }, "/type"],
  ["a wrong keyword type", { type: "string", maxLength: "5" }, "/maxLength"],
  ["required as a boolean", { type: "object", required: true }, "/required"],
  ["an empty enum", { enum: [] }, "/enum"],
  ["false", false, ""],
  ["an enum against its type", { type: "integer", enum: ["a"] }, ""],
  ["recursion that never ends", { type: "object", properties: { a: { $ref: "#" } }, required: ["a"] }, ""],
  ["half a surrogate pair", { const: "\ud800" }, "/const"],
  [
    "not around what is itself only partly said",
    {
      type: "object",
      not: {
        type: "object",
        not: { properties: { a: { const: 1 }, b: { type: "string", pattern: "x" } }, required: ["a"] },
      },
    },
    "/not",
  ],
  ["oneOf around it", { oneOf: [{ type: "string", format: "date", maxLength: 20 }, { type: "string" }] }, "/oneOf"],
  ["many distinct further names", { type: "object", minProperties: 3 }, ""],
])("%s is refused with its path", (_name, schema, path) => {
  expect(refusal(schema)?.path).toBe(path);
});

test.each<[string, Json]>([
  ["annotations", { title: "t", description: "d", default: 1, examples: [1], "x-own": {}, type: "integer" }],
  ["uniqueItems: false", { type: "array", uniqueItems: false }],
  ["a format nobody defines", { type: "string", format: "colour" }],
])("%s constrain nothing and are accepted", (_name, schema) => {
  expect(refusal(schema)).toBeUndefined();
});

test("keywords beside $ref, anyOf, enum and allOf all count", async () => {
  const base: Json = { $defs: { s: { type: "string" } } };
  await check({ ...base, $ref: "#/$defs/s", maxLength: 2 }, ['"ab"'], ['"abc"']);
  await check(
    { type: "object", properties: { a: { type: "integer" } }, anyOf: [{ required: ["a"] }] },
    ['{"a": 1}'],
    ["{}", '{"a": "x"}'],
  );
  await check({ enum: ["a", 1, true], type: "string" }, ['"a"'], ["1", "true"]);
  await check({ allOf: [{ minimum: 3 }, { maximum: 5 }], type: "integer" }, ["3", "5"], ["2", "6"]);
  await check(
    {
      allOf: [{ properties: { a: { type: "string" } }, required: ["a"] }, { properties: { b: { type: "null" } } }],
      type: "object",
    },
    ['{"a": "x"}', '{"a": "x", "b": null}'],
    ["{}", '{"a": "x", "b": 1}'],
  );
});

test("keywords without a type leave other types alone", async () => {
  await check({ minLength: 2 }, ['"ab"', "5", "null", "[1]", '{"a": 1}'], ['"a"']);
});

test("properties named like annotations are properties", async () => {
  const inner = (type: string): Json => ({
    type: "object",
    properties: { title: { type }, default: { type } },
    required: ["title"],
  });
  const schema: Json = {
    type: "object",
    properties: { a: inner("string"), b: inner("integer") },
    required: ["a", "b"],
  };
  await check(schema, ['{"a": {"title": "x"}, "b": {"title": 1}}'], ['{"a": {"title": "x"}, "b": {"title": "x"}}']);
});

test("a name that is listed never comes again as a further one", async () => {
  const schema: Json = {
    type: "object",
    properties: { id: { type: "integer" } },
    additionalProperties: { type: "string" },
  };
  await check(
    schema,
    ['{"id": 1, "ie": "x"}', '{"i": "x"}', '{"idx": "x"}'],
    ['{"id": 1, "id": "x"}', '{"id": "x"}', '{"\\u0069d": "x"}', '{"a": 1}'],
  );
});

test("objects that say nothing of further names are closed, those that ask for them are open", async () => {
  await check({ type: "object", properties: { a: {} } }, ['{"a": 1}', "{}"], ['{"b": 1}']);
  await check(
    { type: "object", properties: { a: {} }, additionalProperties: true },
    ['{"a": 1, "b": 1}', '{"b": 1}'],
    [],
  );
  await check({ type: "object" }, ['{"b": 1}', "{}"], ["[]"]);
});

test("minProperties and maxProperties count listed members", async () => {
  const properties: Json = { a: {}, b: {}, c: {} };
  await check({ type: "object", properties, minProperties: 2 }, ['{"a": 1, "c": 1}'], ["{}", '{"b": 1}']);
  await check({ type: "object", properties, maxProperties: 1 }, ["{}", '{"b": 1}'], ['{"a": 1, "b": 1}']);
});

test("patternProperties bind their names, also where two fit", async () => {
  await check(
    {
      type: "object",
      patternProperties: { "^s_": { type: "string" }, "^i_": { type: "integer" } },
      additionalProperties: false,
    },
    ['{"s_a": "x"}', '{"i_a": 1}', '{"s_a": "x", "i_b": 2}'],
    ['{"s_a": 1}', '{"i_a": "x"}', '{"x": 1}'],
  );
});

test("oneOf allows what exactly one branch allows", async () => {
  const kinds: Json = [
    { type: "object", properties: { kind: { const: "a" }, n: { type: "integer" } }, required: ["kind", "n"] },
    { type: "object", properties: { kind: { const: "b" }, s: { type: "string" } }, required: ["kind", "s"] },
  ];
  await check(
    { oneOf: kinds },
    ['{"kind": "a", "n": 1}', '{"kind": "b", "s": "x"}'],
    ['{"kind": "a", "s": "x"}', '{"kind": "c"}'],
  );
  const either: Json = {
    type: "object",
    properties: { a: { type: "integer" }, b: { type: "integer" } },
    oneOf: [{ required: ["a"] }, { required: ["b"] }],
  };
  await check(either, ['{"a": 1}', '{"b": 1}'], ["{}", '{"a": 1, "b": 1}']);
  await check({ type: "integer", oneOf: [{ minimum: 3 }, { maximum: 5 }] }, ["2", "6"], ["3", "4", "5"]);
});

test("not, if/then/else and dependencies work where a grammar can say them", async () => {
  await check({ not: { type: "string" } }, ["1", "null"], ['"a"']);
  await check({ not: { not: { type: "string" } } }, ['"a"'], ["1"]);
  await check({ enum: [1, 2, 3], not: { const: 2 } }, ["1", "3"], ["2"]);
  const conditional: Json = {
    type: "object",
    properties: { kind: { enum: ["a", "b"] }, n: { type: "integer" } },
    required: ["kind"],
    if: { properties: { kind: { const: "a" } } },
    // biome-ignore lint/suspicious/noThenProperty: the keyword of JSON Schema, never awaited.
    then: { required: ["n"] },
  };
  await check(conditional, ['{"kind": "a", "n": 1}', '{"kind": "b"}'], ['{"kind": "a"}']);
  const dependent: Json = { type: "object", properties: { a: {}, b: {} }, dependentRequired: { a: ["b"] } };
  await check(dependent, ["{}", '{"b": 1}', '{"a": 1, "b": 1}'], ['{"a": 1}']);
});

test("numbers keep their limits on both sides of the point", async () => {
  await check(
    { type: "integer", minimum: -5, exclusiveMaximum: 120 },
    ["-5", "0", "99", "119"],
    ["-6", "120", "1.5", "007", "-0"],
  );
  await check({ type: "number", minimum: -459.67 }, ["-459.67", "-459.6", "0.5", "12"], ["-459.68", "-460"]);
  await check(
    { type: "number", exclusiveMinimum: 0, maximum: 1.25 },
    ["0.001", "1.25", "1.2", "1"],
    ["0", "0.0", "1.26", "1.251", "-1"],
  );
  await check({ type: "integer", multipleOf: 5, minimum: 0, maximum: 20 }, ["0", "15"], ["7", "25"]);
  await check({ type: "integer", multipleOf: 100 }, ["0", "300", "-1200"], ["150", "10"]);
  await check({ type: "number", maximum: 1, minimum: 0, exclusiveMaximum: true }, ["0", "0.5"], ["1", "1.0"]);
});

test("strings count characters, not bytes, and escapes are whole", async () => {
  await check(
    { type: "string", minLength: 2, maxLength: 3 },
    ['"äö"', '"日本語"', '"😀😀😀"', '"a\\n"'],
    ['"a"', '"abcd"', '"😀😀😀😀"'],
  );
  await check({ type: "string" }, ['"\\u00e9"', '"\\ud83d\\ude00"', '"\\/"'], ['"\\ud800"', '"\\x"', '"\n"', '"a']);
  const invalid = await bench.compile({ kind: "json_schema", schema: { type: "string" }, strict: false });
  expect(bench.follow(invalid, [0x22, 0xed, 0xa0, 0x80, 0x22])).toEqual({ stoppedAt: 2 });
});

test("patterns are searched for unless anchored, and are written as JSON text", async () => {
  await check({ type: "string", pattern: "b+" }, ['"abbc"', '"b"'], ['"a"', '""']);
  await check({ type: "string", pattern: '^["\\\\/]$' }, ['"\\""', '"\\\\"', '"/"'], ['"""', '"a"']);
  await check({ type: "string", pattern: "^(a|b$)" }, ['"axyz"', '"b"'], ['"bx"', '"c"']);
  await check(
    { type: "string", pattern: "^[0-9a-f]{2,40}$", minLength: 3 },
    ['"abc"'],
    ['"ab"', `"${"a".repeat(41)}"`],
  );
  await check(
    { type: "string", pattern: "^[a-z]{1,255}x?$" },
    [`"${"a".repeat(255)}x"`],
    [`"${"a".repeat(257)}"`, '""'],
  );
});

test("formats allow only what the format defines", async () => {
  const of = (format: string): Json => ({ type: "string", format });
  await check(of("date"), ['"2024-02-29"', '"2023-12-31"'], ['"2023-02-29"', '"2023-13-01"', '"2023-04-31"']);
  await check(
    of("date-time"),
    ['"2024-01-31T23:59:59.5Z"', '"2024-01-31T00:00:00+09:00"'],
    ['"2024-01-31"', '"2024-01-31T24:00:00Z"'],
  );
  await check(of("email"), ['"john.doe@example.com"'], ['"john"', '"a@b"', '"a b@c.de"']);
  await check(of("uuid"), ['"123e4567-e89b-12d3-a456-426614174000"'], ['"123e4567"']);
  await check(of("ipv4"), ['"255.0.10.1"'], ['"256.1.1.1"', '"1.1.1"']);
  await check({ type: "string", format: "email", maxLength: 100 }, ['"jo@example.com"'], ['"x"']);
});

test("uniqueItems over an enum allows each value once", async () => {
  const schema: Json = { type: "array", items: { enum: ["a", "b", "c"] }, uniqueItems: true, minItems: 1 };
  await check(schema, ['["a"]', '["a", "c"]', '["a", "b", "c"]'], ["[]", '["a", "a"]', '["d"]']);
});

test("tuples and item counts", async () => {
  const tuple: Json = {
    type: "array",
    prefixItems: [{ type: "string" }, { type: "integer" }],
    items: false,
    minItems: 1,
  };
  await check(tuple, ['["a"]', '["a", 1]'], ["[]", '["a", 1, 2]', "[1]"]);
  await check(
    { type: "array", items: { type: "integer" }, minItems: 2, maxItems: 3 },
    ["[1, 2]", "[1,2,3]"],
    ["[1]", "[1, 2, 3, 4]"],
  );
  await check(
    { type: "array", items: [{ type: "null" }], additionalItems: { type: "boolean" } },
    ["[null, true]", "[]"],
    ["[true]", "[null, 1]"],
  );
});

test("recursive schemas", async () => {
  const tree: Json = {
    type: "object",
    properties: { v: { type: "integer" }, next: { anyOf: [{ type: "null" }, { $ref: "#" }] } },
    required: ["v", "next"],
  };
  await check(tree, ['{"v": 1, "next": null}', '{"v": 1, "next": {"v": 2, "next": null}}'], ['{"v": 1, "next": {}}']);
});

test("white space is optional, bounded, and never leads or trails", async () => {
  const schema: Json = {
    type: "object",
    properties: { a: { type: "integer" }, b: { type: "integer" } },
    required: ["a", "b"],
  };
  await check(
    schema,
    ['{"a":1,"b":2}', '{"a": 1, "b": 2}', '{"a":1, "b":2}'],
    ['{"a":  1,"b":2}', '{"a":1,  "b":2}', ' {"a":1,"b":2}'],
  );
  const policy = { propertyOrder: "schema", whitespace: { kind: "bounded", max: 3 } } as const;
  const artifact = await bench.compile({ kind: "json_schema", schema, strict: false }, policy);
  expect(bench.matches(artifact, '{\n  "a": 1,\n  "b": 2\n}')).toBe(true);
  expect(bench.matches(artifact, '{"a":1,"b":2}')).toBe(true);
  expect(bench.matches(artifact, '{    "a":1,"b":2}')).toBe(false);
  expect(bench.matches(artifact, '{"a":1,"b":2\n\n\n\n}')).toBe(false);
});

test("an endless number is not allowed", async () => {
  await check({ type: "number" }, ["3.14", "-0.5e10", "1E5"], [`0.${"3".repeat(40)}`, "9".repeat(40)]);
});

test.each<[string, Json]>([
  ["500 nested objects", nested(500)],
  ["a pattern of 50,000 groups", { type: "string", pattern: "(".repeat(50_000) + ")".repeat(50_000) }],
  ["minLength 10,000", { type: "string", minLength: 10_000 }],
  ["a huge count in a pattern", { type: "string", pattern: "^(ab{1000}){1000}$" }],
  [
    "3,000 properties",
    { type: "object", properties: Object.fromEntries(Array.from({ length: 3000 }, (_, i) => [`p${i}`, {}])) },
  ],
  ["nested counts", { type: "string", pattern: "^((a{1,500}b){1,500}c){1,500}$" }],
])("%s are too complex, said at once", (_name, schema) => {
  expect(refusal(schema)?.code).toBe("schema_too_complex");
});

test("twice maxLength 32767 costs no more than once any other string", async () => {
  const text: Json = { type: "string", maxLength: 32_767 };
  const schema: Json = { type: "object", properties: { a: text, b: text }, required: ["a", "b"] };
  const artifact = await bench.compile({ kind: "json_schema", schema, strict: false });
  expect(artifact.byteLength).toBeLessThan(500_000);
});

function nested(levels: number): Json {
  let schema: Json = { type: "string" };
  for (let i = 0; i < levels; i++) schema = { type: "object", properties: { a: schema }, required: ["a"] };
  return schema;
}
