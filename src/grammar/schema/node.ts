// What a JSON Schema means, once all its keywords are resolved against each other. Nodes are interned: equal meaning built
// twice is one object, so equality is identity and every memo can be keyed by `id`.
import type { Regex } from "../regex/ast.ts";

export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

export interface Bound {
  readonly value: number;
  readonly exclusive: boolean;
}

/** `source` is the JavaScript pattern that `regex` came from; `short` a part of it whose texts have limited length. */
export interface TextPattern {
  readonly source: string;
  readonly regex: Regex;
  readonly short?: Regex | undefined;
  /** True where `regex` is only a part of what the schema allows (the formats). */
  readonly narrow: boolean;
  /** True where no rewriting could cut `regex` to the node's lengths: whoever uses it must see to them. */
  readonly uncut?: boolean;
}

export interface StringNode {
  readonly kind: "string";
  readonly min: number;
  readonly max: number;
  /** Full-match language of the value, cut to `min` and `max` unless it says `uncut`; undefined: any text. */
  readonly pattern: TextPattern | undefined;
}

export interface NumberNode {
  readonly kind: "number";
  readonly integer: boolean;
  readonly min: Bound | undefined;
  readonly max: Bound | undefined;
  /** Positive integer; set only when `integer` is. */
  readonly multipleOf: number | undefined;
}

export interface ArrayNode {
  readonly kind: "array";
  readonly prefix: readonly Node[];
  readonly items: Node;
  readonly min: number;
  readonly max: number;
  readonly unique: boolean;
}

export interface Property {
  readonly name: string;
  readonly value: Node;
  readonly required: boolean;
}

export interface KeyPattern {
  readonly source: string;
  readonly regex: Regex;
  readonly value: Node;
}

export interface ObjectNode {
  readonly kind: "object";
  /** In the order of the schema. A value of `never` forbids the name. */
  readonly properties: readonly Property[];
  readonly patterns: readonly KeyPattern[];
  /** For names that neither `properties` nor `patterns` know. */
  readonly additional: Node;
  /** True when the schema said nothing of other names: allowed by the standard, closed when a grammar is made of it. */
  readonly implicit: boolean;
  /** What every name must be. */
  readonly names: Node;
  readonly min: number;
  readonly max: number;
}

export interface UnionNode {
  readonly kind: "union";
  readonly options: readonly Node[];
}

export type NodeShape =
  | { readonly kind: "any" }
  | { readonly kind: "never" }
  | { readonly kind: "null" }
  | { readonly kind: "boolean" }
  | { readonly kind: "literal"; readonly value: Json }
  | UnionNode
  | { readonly kind: "ref"; readonly name: string }
  | StringNode
  | NumberNode
  | ArrayNode
  | ObjectNode;

export type Node = NodeShape & { readonly id: number };

/** JSON text with sorted keys: equal values give equal text. */
export function stableText(value: Json): string {
  if (Array.isArray(value)) return `[${value.map(stableText).join(",")}]`;
  if (typeof value === "object" && value !== null) {
    const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
    return `{${entries.map(([key, item]) => `${JSON.stringify(key)}:${stableText(item)}`).join(",")}}`;
  }
  // -0 and 0 are one JSON number.
  return JSON.stringify(value === 0 ? 0 : value);
}

/** Makes nodes, each meaning once. `limit` bounds how many distinct ones a schema may lead to. */
export class Nodes {
  private readonly interned = new Map<string, Node>();
  private readonly onLimit: () => Error;
  private readonly limit: number;
  readonly any: Node;
  readonly never: Node;
  /** One node for each JSON type, without any constraint. */
  readonly everyType: readonly Node[];
  readonly anyText: Node;

  constructor(limit: number, onLimit: () => Error) {
    this.limit = limit;
    this.onLimit = onLimit;
    this.any = this.make({ kind: "any" });
    this.never = this.make({ kind: "never" });
    this.anyText = this.make({ kind: "string", min: 0, max: Infinity, pattern: undefined });
    this.everyType = [
      this.make({
        kind: "object",
        properties: [],
        patterns: [],
        additional: this.any,
        implicit: true,
        names: this.any,
        min: 0,
        max: Infinity,
      }),
      this.make({ kind: "array", prefix: [], items: this.any, min: 0, max: Infinity, unique: false }),
      this.anyText,
      this.make({ kind: "number", integer: false, min: undefined, max: undefined, multipleOf: undefined }),
      this.make({ kind: "boolean" }),
      this.make({ kind: "null" }),
    ];
  }

  /** Interns a shape after the rewritings that need no other knowledge: a contradiction becomes `never`. */
  make(shape: NodeShape): Node {
    const settled = this.settle(shape);
    const key = keyOf(settled);
    const known = this.interned.get(key);
    if (known !== undefined) return known;
    if (this.interned.size >= this.limit) throw this.onLimit();
    const node: Node = { ...settled, id: this.interned.size };
    this.interned.set(key, node);
    return node;
  }

  union(options: readonly Node[]): Node {
    const flat = new Map<number, Node>();
    for (const option of options.flatMap((node) => (node.kind === "union" ? node.options : [node]))) {
      if (option.kind === "any") return option;
      if (option.kind !== "never") flat.set(option.id, option);
    }
    const [only] = flat.values();
    if (only === undefined) return this.never;
    return flat.size === 1 ? only : this.make({ kind: "union", options: [...flat.values()] });
  }

  private settle(shape: NodeShape): NodeShape {
    switch (shape.kind) {
      case "string":
        return shape.min > shape.max ? { kind: "never" } : shape;
      case "number": {
        const { min, max } = shape;
        if (min === undefined || max === undefined) return shape;
        const empty = min.value > max.value || (min.value === max.value && (min.exclusive || max.exclusive));
        return empty ? { kind: "never" } : shape;
      }
      case "array": {
        const closedAt = shape.prefix.findIndex((item) => item.kind === "never");
        const prefix = closedAt < 0 ? shape.prefix : shape.prefix.slice(0, closedAt);
        const longest = closedAt >= 0 || shape.items.kind === "never" ? prefix.length : Infinity;
        const max = Math.min(shape.max, longest);
        return shape.min > max ? { kind: "never" } : { ...shape, prefix: prefix.slice(0, max), max };
      }
      case "object": {
        const required = shape.properties.filter((property) => property.required);
        const impossible = required.some((property) => property.value.kind === "never") || required.length > shape.max;
        return impossible || shape.min > shape.max
          ? { kind: "never" }
          : { ...shape, min: Math.max(shape.min, required.length) };
      }
      default:
        return shape;
    }
  }
}

function boundKey(bound: Bound | undefined): string {
  return bound === undefined ? "-" : `${bound.value}${bound.exclusive ? "x" : ""}`;
}

function keyOf(shape: NodeShape): string {
  switch (shape.kind) {
    case "literal":
      return `l${stableText(shape.value)}`;
    case "union":
      return `u${shape.options.map((option) => option.id).join(",")}`;
    case "ref":
      return `r${shape.name}`;
    case "string":
      return `s${shape.min},${shape.max},${shape.pattern === undefined ? "" : shape.pattern.source}`;
    case "number":
      return `n${shape.integer},${boundKey(shape.min)},${boundKey(shape.max)},${shape.multipleOf}`;
    case "array":
      return `a${shape.prefix.map((item) => item.id).join(",")};${shape.items.id};${shape.min},${shape.max},${shape.unique}`;
    case "object": {
      const properties = shape.properties.map(({ name, value, required }) => [name, value.id, required]);
      const patterns = shape.patterns.map(({ source, value }) => [source, value.id]);
      return `o${JSON.stringify([properties, patterns, shape.additional.id, shape.implicit, shape.names.id])}${shape.min},${shape.max}`;
    }
    default:
      return shape.kind;
  }
}
