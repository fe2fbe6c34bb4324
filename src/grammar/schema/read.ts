// JSON Schema (drafts 4 to 2020-12) into nodes. Every keyword is enforced, is an annotation, or is refused by name and
// path; unknown keywords are annotations, as the standard says.
import { below, invalid, Refusal, tooComplex, unsupported } from "../refusal.ts";
import { Algebra, isArray, isObject } from "./algebra.ts";
import { subtract } from "./difference.ts";
import { type Json, type Node, Nodes, type Property } from "./node.ts";
import { referenceName, referenceTarget } from "./references.ts";
import { Patterns, readNumber, readString, type Schema } from "./scalars.ts";
import { readArrayType, readObjectType, type ShapeReader } from "./shapes.ts";

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

const ANNOTATIONS: ReadonlySet<string> = new Set(["$comment", "title", "description", "default", "examples"]);

interface Excluded {
  readonly schema: Json;
  readonly path: string;
}

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

class Reader implements ShapeReader {
  readonly algebra: Algebra;
  readonly origins = new Map<number, string>();
  readonly nodes: Nodes;
  private readonly document: Json;
  readonly patterns = new Patterns();
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
    const excluded: Excluded[] = [];
    add("allOf", () => this.readAllOf(schema, path, excluded));
    add("anyOf", () =>
      this.algebra.at(below(path, "anyOf"), () => this.algebra.union(this.readList(schema, "anyOf", path))),
    );
    let node = this.meet(parts, path);
    if (Object.hasOwn(schema, "oneOf")) node = this.readOneOf(node, schema, path);
    if (Object.hasOwn(schema, "not")) excluded.push({ schema: schema.not ?? null, path: below(path, "not") });
    for (const { schema: unwanted, path: where } of excluded) node = this.exclude(node, unwanted, where);
    node = this.readConditional(node, schema, path);
    node = this.readDependencies(node, schema, path);
    return node;
  }

  meet(nodes: readonly Node[], path: string): Node {
    return this.algebra.at(path, () => nodes.reduce((all, node) => this.algebra.intersect(all, node), this.nodes.any));
  }

  /** What a branch excludes by `not` waits until all that it is taken from is known: most exclusions can only then be said. */
  private readAllOf(schema: Schema, path: string, excluded: Excluded[]): Node {
    const where = below(path, "allOf");
    const list = listOf(schema, "allOf", path);
    const branches = list.map((branch, i) => {
      const here = below(where, i);
      if (!isObject(branch) || !Object.hasOwn(branch, "not")) return this.read(branch, here);
      const { not: unwanted = null, ...rest } = branch;
      excluded.push({ schema: unwanted, path: below(here, "not") });
      return this.read(rest, here);
    });
    return this.meet(branches, where);
  }

  private exclude(node: Node, unwanted: Json, path: string): Node {
    if (isObject(unwanted) && Object.keys(unwanted).every((key) => key === "not" || ANNOTATIONS.has(key))) {
      const wanted = unwanted.not;
      // Not "not this": nothing need be said exactly to take it.
      if (wanted !== undefined) return this.meet([node, this.read(wanted, below(path, "not"))], path);
    }
    const excluded = this.exactly(path, "not", () => this.read(unwanted, path));
    return this.algebra.at(path, () => subtract(this.algebra, node, excluded));
  }

  private readList(schema: Schema, keyword: string, path: string): Node[] {
    const where = below(path, keyword);
    return listOf(schema, keyword, path).map((item, i) => this.read(item, below(where, i)));
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
      object: () => readObjectType(this, schema, path),
      array: () => readArrayType(this, schema, path),
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
}

function listOf(schema: Schema, keyword: string, path: string): readonly Json[] {
  const list = schema[keyword];
  if (!isArray(list) || list.length === 0)
    throw invalid(below(path, keyword), `\`${keyword}\` must be a non-empty array of schemas.`);
  return list;
}

function isWellFormed(value: Json): boolean {
  if (typeof value === "string") return value.isWellFormed();
  if (isArray(value)) return value.every(isWellFormed);
  if (isObject(value)) return Object.entries(value).every(([key, item]) => key.isWellFormed() && isWellFormed(item));
  return true;
}
