// Any grammar source to the one form that XGrammar is given, and its name. Runs in the compile child: what a caller sends
// is looked at where it can be stopped.
import { createHash } from "node:crypto";
import { checkBudget, type SchemaBudget } from "./budget.ts";
import type { GrammarPolicy, GrammarSource } from "./grammar.ts";
import { regexMacro } from "./lower/ebnf.ts";
import { policyText } from "./policy.ts";
import { invalid, Refusal, SCHEMA_PARAM, tooComplex, unsupported } from "./refusal.ts";
import { type Regex, stateEstimate } from "./regex/ast.ts";
import { emitText } from "./regex/emit.ts";
import { parseFullPattern, PatternFault } from "./regex/parse.ts";
import { schemaToEbnf } from "./schema.ts";
import { isArray, isObject } from "./schema/algebra.ts";
import type { Json } from "./schema/node.ts";
import { plainJson } from "./source.ts";
import { checkStrictProfile } from "./strict.ts";

/** The core's version and the number of our own changes to it; artifacts of another compiler are not read. */
export const COMPILER_VERSION = "xgrammar 0.2.8+1";

export interface PreparedGrammar {
  readonly kind: "ebnf" | "structural_tag";
  readonly text: string;
}

/** A refusal with the part of the request that it speaks of. */
export class RequestRefusal extends Error {
  override readonly name = "RequestRefusal";
  readonly refusal: Refusal;
  readonly param: string;

  constructor(refusal: Refusal, base: string) {
    super(refusal.message);
    this.refusal = refusal;
    const param = base + refusal.path;
    this.param = param.length > MAX_PARAM ? `${param.slice(0, MAX_PARAM)}...` : param;
  }
}

const MAX_PARAM = 512;
const MAX_REGEX_STATES = 2_000;
const MAX_GROUP_DEPTH = 100;

/** Throws RequestRefusal for what cannot be guaranteed or costs too much. */
export function prepareGrammar(source: GrammarSource, policy: GrammarPolicy, budget: SchemaBudget): PreparedGrammar {
  switch (source.kind) {
    case "json_schema":
      return named(SCHEMA_PARAM, () => {
        const schema = plainJson(source.schema, budget);
        if (source.strict) {
          // First, so that a schema too deep for a recursive walk is refused as such.
          checkBudget(schema, budget);
          checkStrictProfile(schema);
        }
        return { kind: "ebnf", text: schemaToEbnf(schema, policy, budget) };
      });
    case "json_object":
      return { kind: "ebnf", text: schemaToEbnf({ type: "object" }, policy, budget) };
    case "regex":
      return named("structured_outputs.regex", () => ({
        kind: "ebnf",
        text: `root ::= ${regexMacro(emitText(parsePattern(source.pattern)))}\n`,
      }));
    case "ebnf":
      return named("structured_outputs.grammar", () => ({ kind: "ebnf", text: checkEbnf(source.grammar, budget) }));
    case "structural_tag":
      return { kind: "structural_tag", text: JSON.stringify(prepareTag(source.tag, policy, budget)) };
  }
}

/** sha256 hex of all that decides the artifact's bytes. The prepared text is canonical: annotations and key order are gone. */
export function grammarHash(prepared: PreparedGrammar, policy: GrammarPolicy, vocabularyHash: string): string {
  const parts = [
    "sluice-grammar-1",
    COMPILER_VERSION,
    vocabularyHash,
    policyText(policy),
    prepared.kind,
    prepared.text,
  ];
  return createHash("sha256").update(JSON.stringify(parts)).digest("hex");
}

function named<T>(base: string, step: () => T): T {
  try {
    return step();
  } catch (error) {
    throw error instanceof Refusal ? new RequestRefusal(error, base) : error;
  }
}

function parsePattern(pattern: string): Regex {
  try {
    const regex = parseFullPattern(pattern);
    if (stateEstimate(regex) > MAX_REGEX_STATES)
      throw tooComplex("", "The pattern's counted repetition adds up to too much.");
    return regex;
  } catch (error) {
    if (!(error instanceof PatternFault)) throw error;
    const message = `The pattern ${error.message}.`;
    throw error.tooComplex ? tooComplex("", message) : unsupported("", message);
  }
}

/** Bounds what the core's recursive parser sees. */
function checkEbnf(grammar: string, budget: SchemaBudget): string {
  if (grammar.length > budget.bytes)
    throw tooComplex("", `The grammar has more than the limit of ${budget.bytes} characters.`);
  let depth = 0;
  for (const character of grammar) {
    if (character === "(") depth++;
    else if (character === ")") depth--;
    if (depth > MAX_GROUP_DEPTH) throw tooComplex("", `The grammar nests groups deeper than ${MAX_GROUP_DEPTH}.`);
  }
  return grammar;
}

const TAG_PARAM = "structured_outputs.structural_tag";

/**
 * A structural tag in which every schema, pattern and grammar went through the same front end as one that stands alone.
 * `param` beside a `json_schema` names the part of the request that the schema came from.
 */
function prepareTag(tag: unknown, policy: GrammarPolicy, budget: SchemaBudget): Json {
  const plain = named(TAG_PARAM, () => {
    const value = plainJson(tag, { ...budget, bytes: budget.bytes * 4 });
    checkBudget(value, { ...budget, bytes: budget.bytes * 4, depth: budget.depth + 40 });
    if (!isObject(value) || !isObject(value.format)) throw invalid("", "A structural tag needs a `format` object.");
    return value;
  });
  const visit = (value: Json, path: string): Json => {
    if (isArray(value)) return value.map((item, i) => visit(item, `${path}/${i}`));
    if (!isObject(value)) return value;
    switch (value.type) {
      case "json_schema": {
        const { json_schema: schema = true, param } = value;
        return named(typeof param === "string" ? param : `${TAG_PARAM}${path}/json_schema`, () => {
          if (value.style !== undefined && value.style !== "json")
            throw unsupported("", "Only the style `json` is supported.");
          for (const key of ["any_order", "excludes"]) {
            if (Object.hasOwn(value, key)) throw unsupported("", `\`${key}\` is not supported.`);
          }
          if (value.strict === true) checkStrictProfile(schema);
          return { type: "grammar", grammar: schemaToEbnf(schema, policy, budget) };
        });
      }
      case "regex":
        return named(`${TAG_PARAM}${path}/pattern`, () => ({
          ...value,
          pattern: emitText(parsePattern(String(value.pattern))),
        }));
      case "grammar":
        return named(`${TAG_PARAM}${path}/grammar`, () => ({
          ...value,
          grammar: checkEbnf(String(value.grammar), budget),
        }));
      default:
        return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, visit(item, `${path}/${key}`)]));
    }
  };
  return { type: "structural_tag", format: visit(isObject(plain) ? (plain.format ?? null) : null, "/format") };
}
