// What a schema may cost, checked on its plain JSON before anything looks at its meaning.
import { below, tooComplex } from "./refusal.ts";
import { isArray, isObject } from "./schema/algebra.ts";
import type { Json } from "./schema/node.ts";

export interface SchemaBudget {
  /** Bytes of the schema as JSON text. */
  readonly bytes: number;
  /** Nesting of objects and arrays in the schema's text. */
  readonly depth: number;
  /** Members of all `properties` together. */
  readonly properties: number;
  /** Values of all `enum`s together. */
  readonly enumValues: number;
  /** Automaton states that accept much of the vocabulary, as counted repetition makes them. */
  readonly states: number;
  /** Bytes of the grammar that the schema turns into. */
  readonly grammarBytes: number;
}

export const DEFAULT_SCHEMA_BUDGET: SchemaBudget = {
  bytes: 64 * 1024,
  depth: 100,
  properties: 2_000,
  enumValues: 2_000,
  states: 300,
  grammarBytes: 1024 * 1024,
};

/** Throws a Refusal with the path at which a limit is passed. */
export function checkBudget(schema: Json, budget: SchemaBudget): void {
  checkDepth(schema, budget.depth);
  const bytes = new TextEncoder().encode(JSON.stringify(schema)).byteLength;
  if (bytes > budget.bytes) throw tooComplex("", `The schema has ${bytes} bytes; the limit is ${budget.bytes}.`);
  let properties = 0;
  let enumValues = 0;
  const visit = (value: Json, path: string): void => {
    if (isArray(value)) {
      for (const [i, item] of value.entries()) visit(item, below(path, i));
      return;
    }
    if (!isObject(value)) return;
    if (isObject(value.properties)) properties += Object.keys(value.properties).length;
    if (isArray(value.enum)) enumValues += value.enum.length;
    if (properties > budget.properties)
      throw tooComplex(path, `The schema has more than ${budget.properties} properties.`);
    if (enumValues > budget.enumValues)
      throw tooComplex(path, `The schema has more than ${budget.enumValues} enum values.`);
    for (const [key, item] of Object.entries(value)) visit(item, below(path, key));
  };
  visit(schema, "");
}

/** Without recursion: the depth of a hostile schema is what would end a recursive walk. */
function checkDepth(schema: Json, limit: number): void {
  let level: Array<readonly [Json, string]> = [[schema, ""]];
  for (let depth = 0; level.length > 0; depth++) {
    const [first] = level;
    if (depth > limit && first !== undefined) {
      throw tooComplex(first[1].slice(0, 200), `The schema nests deeper than ${limit} levels.`);
    }
    const next: Array<readonly [Json, string]> = [];
    for (const [value, path] of level) {
      if (isArray(value)) for (const [i, item] of value.entries()) next.push([item, below(path, i)]);
      else if (isObject(value)) for (const [key, item] of Object.entries(value)) next.push([item, below(path, key)]);
    }
    level = next;
  }
}
