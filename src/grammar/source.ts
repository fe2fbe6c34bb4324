// What is done with a grammar source before anything looks at its meaning.
import { invalidRequest } from "../errors.ts";
import type { SchemaBudget } from "./budget.ts";
import type { GrammarSource } from "./grammar.ts";
import { invalid, SCHEMA_PARAM, tooComplex } from "./refusal.ts";
import type { Json } from "./schema/node.ts";

/** The part of a request that a source came from. */
export function paramOf(source: GrammarSource): string {
  switch (source.kind) {
    case "json_schema":
      return SCHEMA_PARAM;
    case "json_object":
      return "response_format";
    case "regex":
      return "structured_outputs.regex";
    case "ebnf":
      return "structured_outputs.grammar";
    case "structural_tag":
      return "structured_outputs.structural_tag";
  }
}

/** The source's own text: equal texts need no look at their meaning. Throws a 400 for one of more than `limit` characters. */
export function sourceKey(source: GrammarSource, limit: number): string {
  let text: string;
  try {
    text = JSON.stringify(source);
  } catch {
    throw invalidRequest("schema_too_complex", "The schema nests too deeply.", paramOf(source));
  }
  if (text.length > limit)
    throw invalidRequest(
      "schema_too_complex",
      `The grammar's source has ${text.length} bytes; the limit is ${limit}.`,
      paramOf(source),
    );
  return text;
}

/** A copy as JSON has it: no undefined, no prototypes. Throws Refusal. */
export function plainJson(value: unknown, budget: SchemaBudget): Json {
  let text: string | undefined;
  try {
    text = JSON.stringify(value);
  } catch {
    throw tooComplex("", "The schema nests too deeply.");
  }
  if (text === undefined) throw invalid("", "A schema must be an object or a boolean.");
  if (text.length > budget.bytes) throw tooComplex("", `The schema has more than the limit of ${budget.bytes} bytes.`);
  return JSON.parse(text);
}
