// The keywords of strings and numbers.
import { below, invalid, tooComplex, unsupported } from "../refusal.ts";
import type { Regex } from "../regex/ast.ts";
import { PatternFault, parseSearchPattern } from "../regex/parse.ts";
import type { Algebra } from "./algebra.ts";
import { FORMATS, REFUSED_FORMATS } from "./formats.ts";
import type { Bound, Json, Node, Nodes, TextPattern } from "./node.ts";

export type Schema = { readonly [key: string]: Json };

/** The string that a schema's keywords describe, whatever its `type` says. */
export function readString(schema: Schema, path: string, algebra: Algebra, patterns: Patterns): Node {
  const min = countOf(schema, "minLength", path, 0);
  const max = countOf(schema, "maxLength", path, Infinity);
  let node = algebra.nodes.make({ kind: "string", min, max, pattern: undefined });
  const { pattern, format } = schema;
  const add = (keyword: string, source: string, short?: string) => {
    const where = below(path, keyword);
    const { regex, narrow } = patterns.read(source, where);
    const found: TextPattern = {
      source,
      regex,
      short: short === undefined ? undefined : patterns.read(short, where).regex,
      narrow: narrow || keyword === "format",
    };
    node = algebra.at(where, () => algebra.intersect(node, algebra.text(0, Infinity, found)));
  };
  if (pattern !== undefined) {
    if (typeof pattern !== "string") throw invalid(below(path, "pattern"), "`pattern` must be a string.");
    add("pattern", pattern);
  }
  if (typeof format === "string") {
    if (REFUSED_FORMATS.has(format))
      throw unsupported(below(path, "format"), `The format \`${format}\` cannot be guaranteed.`);
    const known = FORMATS.get(format);
    if (known !== undefined) add("format", known.pattern, known.short);
  }
  return node;
}

/** Search patterns, parsed once for each source. */
export class Patterns {
  private readonly known = new Map<string, { readonly regex: Regex; readonly narrow: boolean }>();

  read(source: string, path: string): { readonly regex: Regex; readonly narrow: boolean } {
    const known = this.known.get(source);
    if (known !== undefined) return known;
    try {
      const found = parseSearchPattern(source);
      this.known.set(source, found);
      return found;
    } catch (error) {
      if (!(error instanceof PatternFault)) throw error;
      const message = `The pattern ${error.message}.`;
      throw error.tooComplex ? tooComplex(path, message) : unsupported(path, message);
    }
  }
}

export function readNumber(schema: Schema, path: string, nodes: Nodes, integerType: boolean): Node {
  const { multipleOf } = schema;
  let integer = integerType;
  if (multipleOf !== undefined) {
    const where = below(path, "multipleOf");
    if (typeof multipleOf !== "number" || multipleOf <= 0)
      throw invalid(where, "`multipleOf` must be a number above zero.");
    if (!Number.isInteger(multipleOf) || multipleOf > 1e6) {
      throw unsupported(where, "`multipleOf` is only supported for whole numbers up to 1000000.");
    }
    integer = true;
  }
  if (schema.format === "int32") return numberNode(schema, path, nodes, true, multipleOf, -(2 ** 31), 2 ** 31 - 1);
  if (schema.format === "int64") integer = true;
  return numberNode(schema, path, nodes, integer, multipleOf, undefined, undefined);
}

function numberNode(
  schema: Schema,
  path: string,
  nodes: Nodes,
  integer: boolean,
  multipleOf: Json | undefined,
  low: number | undefined,
  high: number | undefined,
): Node {
  const side = (
    keyword: string,
    exclusiveKeyword: string,
    limit: number | undefined,
    direction: 1 | -1,
  ): Bound | undefined => {
    const bounds: Bound[] = limit === undefined ? [] : [{ value: limit, exclusive: false }];
    const inclusive = numberOf(schema, keyword, path);
    const exclusive = schema[exclusiveKeyword];
    // Draft 4: a boolean that turns the other keyword exclusive.
    if (inclusive !== undefined) bounds.push({ value: inclusive, exclusive: exclusive === true });
    if (exclusive !== undefined && typeof exclusive !== "boolean") {
      bounds.push({ value: numberOf(schema, exclusiveKeyword, path) ?? 0, exclusive: true });
    }
    return bounds.reduce<Bound | undefined>((best, bound) => {
      if (best === undefined) return bound;
      if (best.value === bound.value) return best.exclusive ? best : bound;
      return (bound.value - best.value) * direction > 0 ? bound : best;
    }, undefined);
  };
  return nodes.make({
    kind: "number",
    integer,
    min: side("minimum", "exclusiveMinimum", low, 1),
    max: side("maximum", "exclusiveMaximum", high, -1),
    multipleOf: typeof multipleOf === "number" && multipleOf !== 1 ? multipleOf : undefined,
  });
}

function numberOf(schema: Schema, keyword: string, path: string): number | undefined {
  const value = schema[keyword];
  if (value === undefined) return undefined;
  if (typeof value !== "number" || !Number.isFinite(value))
    throw invalid(below(path, keyword), `\`${keyword}\` must be a number.`);
  return value;
}

/** A keyword that counts; `otherwise` where it is absent. */
export function countOf(schema: Schema, keyword: string, path: string, otherwise: number): number {
  const value = schema[keyword];
  if (value === undefined) return otherwise;
  if (typeof value !== "number" || !Number.isInteger(value) || value < 0) {
    throw invalid(below(path, keyword), `\`${keyword}\` must be a whole number of at least 0.`);
  }
  return value;
}
