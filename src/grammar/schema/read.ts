// JSON Schema (drafts 4 to 2020-12) into nodes. Every keyword is enforced, is an annotation, or is refused by name and
// path; unknown keywords are annotations, as the standard says.
import { below, invalid, Refusal, tooComplex, unsupported } from "../refusal.ts";
import { Algebra, isArray, isObject } from "./algebra.ts";
import { subtract } from "./difference.ts";
import { type Json, type KeyPattern, type Node, Nodes, type Property } from "./node.ts";
import { referenceName, referenceTarget } from "./references.ts";
import { countOf, Patterns, readNumber, readString, type Schema } from "./scalars.ts";

const REFUSED: Readonly<Record<string, string>> = {
  contains: "at least one matching item cannot be guaranteed",
  minContains: "a count of matching items cannot be guaranteed",
  maxContains: "a count of matching items cannot be guaranteed",
  $dynamicRef: "dynamic references are not supported",
  $recursiveRef: "dynamic references are not supported",
  extends: "it belongs to draft 3",
  disallow: "it belongs to draft 3",
  divisibleBy: "it belongs to draft 3",
};
const TYPES = ["object", "array", "string", "number", "boolean", "null", "integer"] as const;
type TypeName = (typeof TYPES)[number];
const MAX_NODES = 20_000;
const MAX_DEPENDENCIES = 6;
/** Schemas that keep their keywords on the schema itself: no other keyword can have evaluated a name or item. */
const APPLICATORS = ["$ref", "allOf", "anyOf", "oneOf", "if", "not", "dependentSchemas", "dependencies"];

export interface ReadSchema {
  readonly root: Node;
  readonly algebra: Algebra;
  /** Where a node was first said, for refusals found later. */
  readonly origins: ReadonlyMap<number, string>;
}

/** Reads a schema. Throws Refusal with the path of the first keyword that cannot be guaranteed. */
export function readSchema(schema: Json): ReadSchema {
  const reader = new Reader(schema);
  const root = reader.read(schema, "");
  reader.algebra.finish();
  return { root, algebra: reader.algebra, origins: reader.origins };
}

class Reader {
  readonly algebra: Algebra;
  readonly origins = new Map<number, string>();
  private readonly nodes: Nodes;
  private readonly document: Json;
  private readonly patterns = new Patterns();
  /** Non-empty below a nested $id, where `#` means another document. */
  private foreignBase = 0;

  constructor(document: Json) {
    this.document = document;
    this.nodes = new Nodes(MAX_NODES, () =>
      tooComplex(this.algebra.path, "The schema's keywords combine into too many cases."),
    );
    this.algebra = new Algebra(this.nodes);
  }

  read(schema: Json, path: string): Node {
    if (typeof schema === "boolean") return schema ? this.nodes.any : this.nodes.never;
    if (!isObject(schema)) throw invalid(path, "A schema must be an object or a boolean.");
    const nested = path !== "" && (typeof schema.$id === "string" || typeof schema.id === "string");
    const changesBase = nested && !String(schema.$id ?? schema.id).startsWith("#");
    if (changesBase) this.foreignBase++;
    const node = this.readObject(schema, path);
    if (changesBase) this.foreignBase--;
    if (!this.origins.has(node.id)) this.origins.set(node.id, path);
    return node;
  }

  private readObject(schema: Schema, path: string): Node {
    for (const [keyword, reason] of Object.entries(REFUSED)) {
      if (Object.hasOwn(schema, keyword)) {
        throw unsupported(below(path, keyword), `\`${keyword}\` is not supported: ${reason}.`);
      }
    }
    this.refuseUnevaluated(schema, path);
    const parts: Node[] = [];
    const add = (keyword: string, node: () => Node) => {
      if (Object.hasOwn(schema, keyword)) parts.push(node());
    };
    parts.push(this.readTypes(schema, path));
    add("enum", () => this.readEnum(schema.enum, below(path, "enum")));
    add("const", () => this.readLiteral(schema.const ?? null, below(path, "const")));
    add("$ref", () => this.readReference(schema.$ref, below(path, "$ref")));
    add("allOf", () => this.meet(this.readList(schema, "allOf", path), below(path, "allOf")));
    add("anyOf", () =>
      this.algebra.at(below(path, "anyOf"), () => this.algebra.union(this.readList(schema, "anyOf", path))),
    );
    let node = this.meet(parts, path);
    if (Object.hasOwn(schema, "oneOf")) node = this.readOneOf(node, schema, path);
    if (Object.hasOwn(schema, "not")) {
      const where = below(path, "not");
      const excluded = this.exactly(where, "not", () => this.read(schema.not ?? null, where));
      node = this.algebra.at(where, () => subtract(this.algebra, node, excluded));
    }
    node = this.readConditional(node, schema, path);
    node = this.readDependencies(node, schema, path);
    return node;
  }

  private meet(nodes: readonly Node[], path: string): Node {
    return this.algebra.at(path, () => nodes.reduce((all, node) => this.algebra.intersect(all, node), this.nodes.any));
  }

  private readList(schema: Schema, keyword: string, path: string): Node[] {
    const list = schema[keyword];
    const where = below(path, keyword);
    if (!isArray(list) || list.length === 0)
      throw invalid(where, `\`${keyword}\` must be a non-empty array of schemas.`);
    return list.map((item, i) => this.read(item, below(where, i)));
  }

  private readEnum(values: Json | undefined, path: string): Node {
    if (!isArray(values)) throw invalid(path, "`enum` must be an array.");
    if (values.length === 0) throw invalid(path, "`enum` is empty: nothing satisfies it.");
    return this.nodes.union(values.map((value, i) => this.readLiteral(value, below(path, i))));
  }

  private readLiteral(value: Json, path: string): Node {
    if (!isWellFormed(value))
      throw unsupported(path, "A text here holds half a surrogate pair, which no answer can carry.");
    return this.nodes.make({ kind: "literal", value });
  }

  private readReference(reference: Json | undefined, path: string): Node {
    if (typeof reference !== "string") throw invalid(path, "`$ref` must be a string.");
    if (this.foreignBase > 0) throw unsupported(path, "`$ref` below a nested `$id` is not supported.");
    const name = referenceName(this.document, reference, path);
    const node = this.nodes.make({ kind: "ref", name });
    const known = this.reading.get(name);
    if (known === undefined) {
      this.reading.set(name, "open");
      const before = this.algebra.narrowed;
      const target = referenceTarget(this.document, name, path);
      this.algebra.define(name, this.read(target, name.startsWith("#/") ? name.slice(1) : ""));
      this.reading.set(name, this.algebra.narrowed === before ? "exact" : "narrowed");
    } else if (known !== "exact") this.algebra.narrowed++;
    return node;
  }

  /** What is behind each reference: still being read, or whether anything in it came out smaller than said. */
  private readonly reading = new Map<string, "open" | "exact" | "narrowed">();

  private readOneOf(node: Node, schema: Schema, path: string): Node {
    const where = below(path, "oneOf");
    const options = this.exactly(where, "oneOf", () => this.readList(schema, "oneOf", path)).map((option) =>
      this.algebra.at(where, () => this.algebra.intersect(node, option)),
    );
    return this.algebra.at(where, () => {
      const exact = options.map((option, i) =>
        options.reduce(
          (rest, other, j) =>
            i === j || this.algebra.areDisjoint(rest, other) ? rest : this.subtractOption(rest, other, where),
          option,
        ),
      );
      return this.algebra.union(exact);
    });
  }

  /** Reads what answers must avoid: anything that came out smaller than the schema says would let invalid ones in. */
  private exactly<T>(path: string, keyword: string, step: () => T): T {
    const before = this.algebra.narrowed;
    const result = step();
    if (this.algebra.narrowed !== before) {
      throw unsupported(path, `What stands inside \`${keyword}\` here cannot be expressed exactly in a grammar.`);
    }
    return result;
  }

  private subtractOption(rest: Node, other: Node, where: string): Node {
    try {
      return subtract(this.algebra, rest, other);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      throw unsupported(
        where,
        "The branches of `oneOf` may overlap, so that exactly one cannot be guaranteed: use `anyOf`, or make them differ in type or in a required property with different constants.",
      );
    }
  }

  private readConditional(node: Node, schema: Schema, path: string): Node {
    if (!Object.hasOwn(schema, "if") || (!Object.hasOwn(schema, "then") && !Object.hasOwn(schema, "else"))) return node;
    const where = below(path, "if");
    const condition = this.exactly(where, "if", () => this.read(schema.if ?? null, where));
    const then = Object.hasOwn(schema, "then") ? this.read(schema.then ?? null, below(path, "then")) : this.nodes.any;
    const otherwise = Object.hasOwn(schema, "else")
      ? this.read(schema.else ?? null, below(path, "else"))
      : this.nodes.any;
    return this.algebra.at(where, () => {
      const { algebra } = this;
      const yes = algebra.intersect(algebra.intersect(node, condition), then);
      const no = algebra.intersect(subtract(algebra, node, condition), otherwise);
      return algebra.union([yes, no]);
    });
  }

  private readDependencies(node: Node, schema: Schema, path: string): Node {
    let result = node;
    let count = 0;
    for (const keyword of ["dependentRequired", "dependentSchemas", "dependencies"]) {
      const all = schema[keyword];
      if (all === undefined) continue;
      const where = below(path, keyword);
      if (!isObject(all)) throw invalid(where, `\`${keyword}\` must be an object.`);
      for (const [name, dependency] of Object.entries(all)) {
        if (++count > MAX_DEPENDENCIES)
          throw unsupported(where, `More than ${MAX_DEPENDENCIES} dependencies are not supported.`);
        const here = below(where, name);
        const consequence = isArray(dependency)
          ? this.readTypes({ required: dependency }, here)
          : this.read(dependency, here);
        result = this.algebra.at(here, () => {
          const { algebra, nodes } = this;
          const [, ...others] = nodes.everyType;
          const without = nodes.union([...others, this.objectWith([{ name, value: nodes.never, required: false }])]);
          const present = this.objectWith([{ name, value: nodes.any, required: true }]);
          return algebra.union([
            algebra.intersect(result, without),
            algebra.intersect(algebra.intersect(result, present), consequence),
          ]);
        });
      }
    }
    return result;
  }

  private objectWith(properties: readonly Property[]): Node {
    const { any } = this.nodes;
    return this.nodes.make({
      kind: "object",
      properties,
      patterns: [],
      additional: any,
      implicit: true,
      names: any,
      min: 0,
      max: Infinity,
    });
  }

  private refuseUnevaluated(schema: Schema, path: string): void {
    for (const keyword of ["unevaluatedProperties", "unevaluatedItems"]) {
      const value = schema[keyword];
      if (value === undefined || value === true || (isObject(value) && Object.keys(value).length === 0)) continue;
      if (APPLICATORS.some((applicator) => Object.hasOwn(schema, applicator))) {
        throw unsupported(below(path, keyword), `\`${keyword}\` beside other applicators is not supported.`);
      }
    }
  }

  private readTypes(schema: Schema, path: string): Node {
    const asked = this.askedTypes(schema, path);
    const { nodes } = this;
    const makers: Readonly<Record<TypeName, () => Node>> = {
      object: () => this.readObjectType(schema, path),
      array: () => this.readArrayType(schema, path),
      string: () => readString(schema, path, this.algebra, this.patterns),
      number: () => readNumber(schema, path, nodes, false),
      integer: () => readNumber(schema, path, nodes, true),
      boolean: () => nodes.make({ kind: "boolean" }),
      null: () => nodes.make({ kind: "null" }),
    };
    if (asked === undefined) {
      const all = TYPES.filter((type) => type !== "integer").map((type) => makers[type]());
      const free = all.every((node, i) => node === nodes.everyType[i]);
      return free ? nodes.any : nodes.union(all);
    }
    // `number` includes every integer; keeping both would only make the grammar ambiguous.
    const distinct = TYPES.filter((type) => asked.has(type) && !(type === "integer" && asked.has("number")));
    return nodes.union(distinct.map((type) => makers[type]()));
  }

  private askedTypes(schema: Schema, path: string): ReadonlySet<string> | undefined {
    if (!Object.hasOwn(schema, "type")) return undefined;
    const { type } = schema;
    const list = isArray(type) ? type : [type];
    const where = below(path, "type");
    for (const name of list) {
      if (typeof name !== "string" || !TYPES.some((known) => known === name)) {
        throw invalid(where, "`type` must name JSON types: object, array, string, number, integer, boolean, null.");
      }
    }
    if (list.length === 0) throw invalid(where, "`type` is empty: nothing satisfies it.");
    const names = new Set(list.map(String));
    if (schema.nullable === true) names.add("null");
    return names;
  }

  private readArrayType(schema: Schema, path: string): Node {
    const tuple = isArray(schema.items) ? "items" : "prefixItems";
    const list = schema[tuple];
    if (list !== undefined && !isArray(list)) throw invalid(below(path, tuple), `\`${tuple}\` must be an array.`);
    const prefix = (list ?? []).map((item, i) => this.read(item, below(below(path, tuple), i)));
    const rest = tuple === "items" ? "additionalItems" : "items";
    const restOrUnevaluated = Object.hasOwn(schema, rest) ? rest : "unevaluatedItems";
    const items = schema[restOrUnevaluated];
    const { uniqueItems } = schema;
    if (uniqueItems !== undefined && typeof uniqueItems !== "boolean")
      throw invalid(below(path, "uniqueItems"), "`uniqueItems` must be a boolean.");
    const node = this.nodes.make({
      kind: "array",
      prefix,
      items: items === undefined ? this.nodes.any : this.read(items, below(path, restOrUnevaluated)),
      min: countOf(schema, "minItems", path, 0),
      max: countOf(schema, "maxItems", path, Infinity),
      unique: uniqueItems === true,
    });
    if (!this.origins.has(node.id)) this.origins.set(node.id, uniqueItems === true ? below(path, "uniqueItems") : path);
    return node;
  }

  private readObjectType(schema: Schema, path: string): Node {
    const { nodes } = this;
    const where = below(path, "properties");
    const declared = schema.properties ?? {};
    if (!isObject(declared)) throw invalid(where, "`properties` must be an object.");
    const required = this.required(schema, path);
    const patterns = this.readPatterns(schema, path);
    const additionalKeyword = Object.hasOwn(schema, "additionalProperties")
      ? "additionalProperties"
      : "unevaluatedProperties";
    const additionalSchema = schema[additionalKeyword];
    const additional =
      additionalSchema === undefined ? nodes.any : this.read(additionalSchema, below(path, additionalKeyword));
    const fromPatterns = (name: string, otherwise: Node) => {
      const matching = patterns.filter((pattern) => new RegExp(pattern.source, "u").test(name));
      return matching.length === 0
        ? otherwise
        : this.meet(
            matching.map((pattern) => pattern.value),
            below(path, "patternProperties"),
          );
    };
    const properties: Property[] = Object.entries(declared).map(([name, value]) => {
      const here = below(where, name);
      if (!name.isWellFormed()) throw unsupported(here, "A property name holds half a surrogate pair.");
      const own = this.read(value, here);
      return {
        name,
        value: this.algebra.at(here, () => this.algebra.intersect(own, fromPatterns(name, nodes.any))),
        required: required.has(name),
      };
    });
    for (const name of required) {
      if (!Object.hasOwn(declared, name))
        properties.push({ name, value: fromPatterns(name, additional), required: true });
    }
    const names = Object.hasOwn(schema, "propertyNames")
      ? this.algebra.at(below(path, "propertyNames"), () =>
          this.algebra.intersect(this.read(schema.propertyNames ?? null, below(path, "propertyNames")), nodes.anyText),
        )
      : nodes.any;
    const node = this.algebra.at(path, () =>
      this.algebra.object({
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
    if (!this.origins.has(node.id)) this.origins.set(node.id, path);
    return node;
  }

  private required(schema: Schema, path: string): ReadonlySet<string> {
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

  private readPatterns(schema: Schema, path: string): KeyPattern[] {
    const all = schema.patternProperties;
    if (all === undefined) return [];
    const where = below(path, "patternProperties");
    if (!isObject(all)) throw invalid(where, "`patternProperties` must be an object.");
    return Object.entries(all).map(([source, value]) => {
      const here = below(where, source);
      return { source, regex: this.patterns.read(source, here).regex, value: this.read(value, here) };
    });
  }
}

function isWellFormed(value: Json): boolean {
  if (typeof value === "string") return value.isWellFormed();
  if (isArray(value)) return value.every(isWellFormed);
  if (isObject(value)) return Object.entries(value).every(([key, item]) => key.isWellFormed() && isWellFormed(item));
  return true;
}
