import { Ajv2020 } from "ajv/dist/2020.js";
import formats from "ajv-formats";
import { expect, test } from "vitest";
import { DEFAULT_SCHEMA_BUDGET } from "../budget.ts";
import type { GrammarPolicy } from "../grammar.ts";
import { DEFAULT_POLICY } from "../policy.ts";
import { Refusal } from "../refusal.ts";
import type { Json } from "../schema/node.ts";
import { compileSchema } from "./compile.ts";
import { decodeProgram, encodeProgram, type Program } from "./format.ts";
import { ByteMatcher } from "./matcher.ts";
import { mutated, randomText, randomValue, rootSchema, seeded } from "./testing.ts";

// The judge is ajv, which knows nothing of ours. More seeds: SLUICE_FUZZ_SEEDS=5000.
const SEEDS = Number(process.env.SLUICE_FUZZ_SEEDS ?? 250);
const TEXT_LIMIT = 400;
const ajv = new Ajv2020({ strict: false, logger: false });
formats.default(ajv);

const policies: readonly GrammarPolicy[] = [
  DEFAULT_POLICY,
  { ...DEFAULT_POLICY, propertyOrder: "any" },
  { ...DEFAULT_POLICY, whitespace: { kind: "bounded", max: 2 } },
];

/** Through the artifact's bytes, as a daemon sees it; undefined for a schema that is honestly refused. */
function compiled(schema: Json, policy: GrammarPolicy): Program | undefined {
  try {
    return decodeProgram(encodeProgram(compileSchema(schema, policy, DEFAULT_SCHEMA_BUDGET)));
  } catch (error) {
    if (error instanceof Refusal) return undefined;
    throw error;
  }
}

function accepts(program: Program, text: string): boolean {
  const matcher = new ByteMatcher(program);
  return matcher.bytes(new TextEncoder().encode(text)) && matcher.complete();
}

function validator(schema: Json): (value: unknown) => boolean {
  // Copies, as ajv keeps what it compiled by identity.
  const validate = ajv.compile(structuredClone(typeof schema === "boolean" ? schema : (schema as object)));
  return (value) => validate(value) === true;
}

test("answers written by the automaton alone are valid, and no way leads into a dead end", () => {
  const faults: string[] = [];
  let written = 0;
  for (let seed = 0; seed < SEEDS; seed++) {
    const random = seeded(seed);
    const schema = rootSchema(random, { exact: false });
    for (const policy of policies) {
      const program = compiled(schema, policy);
      if (program === undefined) continue;
      const valid = validator(schema);
      for (let i = 0; i < 4; i++) {
        try {
          const text = randomText(random, new ByteMatcher(program), TEXT_LIMIT);
          if (text === undefined) continue;
          written++;
          if (!valid(JSON.parse(text))) faults.push(`${seed} ${JSON.stringify(schema)} wrote ${text}`);
        } catch (error) {
          faults.push(`${seed} ${JSON.stringify(schema)}: ${error}`);
        }
      }
    }
  }
  expect(faults.slice(0, 5)).toEqual([]);
  expect(written).toBeGreaterThan(SEEDS);
});

test("an invalid value is never accepted, however near it is to a valid one", () => {
  const faults: string[] = [];
  let refused = 0;
  for (let seed = 0; seed < SEEDS; seed++) {
    const random = seeded(seed + 1_000_000);
    const schema = rootSchema(random, { exact: false });
    const program = compiled(schema, { ...DEFAULT_POLICY, propertyOrder: "any" });
    if (program === undefined) continue;
    const valid = validator(schema);
    for (let i = 0; i < 12; i++) {
      let value = randomValue(random, 3);
      if (i % 2 === 0) {
        const text = randomText(random, new ByteMatcher(program), TEXT_LIMIT);
        if (text !== undefined) value = mutated(random, JSON.parse(text));
      }
      const text = JSON.stringify(value);
      const accepted = accepts(program, text);
      if (!accepted) refused++;
      if (accepted && !valid(JSON.parse(text))) faults.push(`${seed} ${JSON.stringify(schema)} accepts ${text}`);
    }
  }
  expect(faults.slice(0, 5)).toEqual([]);
  expect(refused).toBeGreaterThan(SEEDS);
});

test("with keywords that are kept exactly, automaton and validator agree on every value", () => {
  const faults: string[] = [];
  let agreed = 0;
  for (let seed = 0; seed < SEEDS; seed++) {
    const random = seeded(seed + 2_000_000);
    const schema = rootSchema(random, { exact: true });
    const program = compiled(schema, { ...DEFAULT_POLICY, propertyOrder: "any" });
    if (program === undefined) continue;
    const valid = validator(schema);
    for (let i = 0; i < 12; i++) {
      let value = randomValue(random, 3);
      if (i % 2 === 0) {
        const text = randomText(random, new ByteMatcher(program), TEXT_LIMIT);
        if (text !== undefined) value = i % 4 === 0 ? JSON.parse(text) : mutated(random, JSON.parse(text));
      }
      const text = JSON.stringify(value);
      if (accepts(program, text) === valid(JSON.parse(text))) agreed++;
      else faults.push(`${seed} ${JSON.stringify(schema)} and ${text}: valid ${valid(value)}`);
    }
  }
  expect(faults.slice(0, 5)).toEqual([]);
  expect(agreed).toBeGreaterThan(SEEDS);
});
