// The keywords of arrays and objects.
import { below, invalid, unsupported } from "../refusal.ts";
import { type Algebra, isArray, isObject } from "./algebra.ts";
import type { Json, KeyPattern, Node, Nodes, Property } from "./node.ts";
import { countOf, type Patterns, type Schema } from "./scalars.ts";

/** What reading an array or object asks of whoever reads the schemas inside. */
export interface ShapeReader {
  readonly nodes: Nodes;
  readonly algebra: Algebra;
  readonly patterns: Patterns;
  /** Where a node was first said. */
  readonly origins: Map<number, string>;
  read(schema: Json, path: string): Node;
  meet(nodes: readonly Node[], path: string): Node;
}

/** The array that a schema's keywords describe, whatever its `type` says. */
export function readArrayType(reader: ShapeReader, schema: Schema, path: string): Node {
  const tuple = isArray(schema.items) ? "items" : "prefixItems";
  const list = schema[tuple];
  if (list !== undefined && !isArray(list)) throw invalid(below(path, tuple), `\`${tuple}\` must be an array.`);
  const prefix = (list ?? []).map((item, i) => reader.read(item, below(below(path, tuple), i)));
  const rest = tuple === "items" ? "additionalItems" : "items";
  const restOrUnevaluated = Object.hasOwn(schema, rest) ? rest : "unevaluatedItems";
  const items = schema[restOrUnevaluated];
  const { uniqueItems } = schema;
  if (uniqueItems !== undefined && typeof uniqueItems !== "boolean")
    throw invalid(below(path, "uniqueItems"), "`uniqueItems` must be a boolean.");
  const node = reader.nodes.make({
    kind: "array",
    prefix,
    items: items === undefined ? reader.nodes.any : reader.read(items, below(path, restOrUnevaluated)),
    min: countOf(schema, "minItems", path, 0),
    max: countOf(schema, "maxItems", path, Infinity),
    unique: uniqueItems === true,
  });
  if (!reader.origins.has(node.id))
    reader.origins.set(node.id, uniqueItems === true ? below(path, "uniqueItems") : path);
  return node;
}

/** The object that a schema's keywords describe, whatever its `type` says. */
export function readObjectType(reader: ShapeReader, schema: Schema, path: string): Node {
  const { nodes } = reader;
  const where = below(path, "properties");
  const declared = schema.properties ?? {};
  if (!isObject(declared)) throw invalid(where, "`properties` must be an object.");
  const required = requiredNames(schema, path);
  const patterns = readPatterns(reader, schema, path);
  const additionalKeyword = Object.hasOwn(schema, "additionalProperties")
    ? "additionalProperties"
    : "unevaluatedProperties";
  const additionalSchema = schema[additionalKeyword];
  const additional =
    additionalSchema === undefined ? nodes.any : reader.read(additionalSchema, below(path, additionalKeyword));
  const fromPatterns = (name: string, otherwise: Node) => {
    const matching = patterns.filter((pattern) => new RegExp(pattern.source, "u").test(name));
    return matching.length === 0
      ? otherwise
      : reader.meet(
          matching.map((pattern) => pattern.value),
          below(path, "patternProperties"),
        );
  };
  const properties: Property[] = Object.entries(declared).map(([name, value]) => {
    const here = below(where, name);
    if (!name.isWellFormed()) throw unsupported(here, "A property name holds half a surrogate pair.");
    const own = reader.read(value, here);
    return {
      name,
      value: reader.algebra.at(here, () => reader.algebra.intersect(own, fromPatterns(name, nodes.any))),
      required: required.has(name),
    };
  });
  for (const name of required) {
    if (!Object.hasOwn(declared, name))
      properties.push({ name, value: fromPatterns(name, additional), required: true });
  }
  const names = Object.hasOwn(schema, "propertyNames")
    ? reader.algebra.at(below(path, "propertyNames"), () =>
        reader.algebra.intersect(
          reader.read(schema.propertyNames ?? null, below(path, "propertyNames")),
          nodes.anyText,
        ),
      )
    : nodes.any;
  const node = reader.algebra.at(path, () =>
    reader.algebra.object({
      kind: "object",
      properties,
      patterns,
      additional,
      implicit: additionalSchema === undefined,
      names: names === nodes.anyText ? nodes.any : names,
      min: countOf(schema, "minProperties", path, 0),
      max: countOf(schema, "maxProperties", path, Infinity),
    }),
  );
  if (!reader.origins.has(node.id)) reader.origins.set(node.id, path);
  return node;
}

function requiredNames(schema: Schema, path: string): ReadonlySet<string> {
  const list = schema.required;
  if (list === undefined) return new Set();
  const where = below(path, "required");
  if (!isArray(list)) throw invalid(where, "`required` must be an array of names.");
  return new Set(
    list.map((name, i) => {
      if (typeof name !== "string") throw invalid(below(where, i), "`required` must hold names.");
      return name;
    }),
  );
}

function readPatterns(reader: ShapeReader, schema: Schema, path: string): KeyPattern[] {
  const all = schema.patternProperties;
  if (all === undefined) return [];
  const where = below(path, "patternProperties");
  if (!isObject(all)) throw invalid(where, "`patternProperties` must be an object.");
  return Object.entries(all).map(([source, value]) => {
    const here = below(where, source);
    return { source, regex: reader.patterns.read(source, here).regex, value: reader.read(value, here) };
  });
}
