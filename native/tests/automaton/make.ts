/**
 * Writes the artifacts that native/tests/automaton_test.cc reads: `node native/tests/automaton/make.ts`. Run it again when the
 * format or the compiler changes.
 */
import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { compileRegex, compileSchema } from "../../../src/grammar/automaton/compile.ts";
import { encodeProgram, type Program } from "../../../src/grammar/automaton/format.ts";
import { DEFAULT_SCHEMA_BUDGET } from "../../../src/grammar/budget.ts";
import { DEFAULT_POLICY } from "../../../src/grammar/policy.ts";
import type { Json } from "../../../src/grammar/schema/node.ts";

const any = { ...DEFAULT_POLICY, propertyOrder: "any" } as const;
const schema = (value: Json, policy = DEFAULT_POLICY as typeof DEFAULT_POLICY) =>
  compileSchema(value, policy, DEFAULT_SCHEMA_BUDGET);

const person: Json = {
  type: "object",
  properties: {
    name: { type: "string", minLength: 1, maxLength: 6 },
    age: { type: "integer", minimum: 0, maximum: 120 },
    tags: { type: "array", items: { enum: ["x", "xy", 1, 12] }, uniqueItems: true, minItems: 1 },
  },
  required: ["name"],
  maxProperties: 2,
};

const artifacts: Readonly<Record<string, Program>> = {
  person: schema(person),
  "person-any-order": schema(person, any),
  anything: schema(true),
  tree: schema({
    $ref: "#/$defs/tree",
    $defs: {
      tree: {
        type: "object",
        properties: { v: { type: "integer" }, kids: { type: "array", items: { $ref: "#/$defs/tree" }, maxItems: 3 } },
        required: ["v"],
        additionalProperties: false,
      },
    },
  }),
  overlap: schema({
    anyOf: [
      { type: "object", properties: { a: { const: 1 } }, required: ["a"], additionalProperties: false },
      {
        type: "object",
        properties: { a: { type: "integer" }, b: { type: "string" } },
        required: ["a", "b"],
        additionalProperties: false,
      },
    ],
  }),
  "word-255": schema({ type: "string", pattern: "^[0-9a-zA-Z_-]{1,255}$" }),
  "plain-regex": compileRegex("(ab|cd){2,40}é?"),
};

for (const [name, program] of Object.entries(artifacts)) {
  const path = fileURLToPath(new URL(`${name}.bin`, import.meta.url));
  writeFileSync(path, encodeProgram(program));
  process.stdout.write(`${path}\n`);
}
