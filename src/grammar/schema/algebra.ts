// Intersection and membership on nodes. Intersection is exact or refuses, but for what `narrowed` counts.
import { unsupported } from "../refusal.ts";
import { isNothing, withLength } from "../regex/ast.ts";
import { mergeObjects } from "./merge.ts";
import {
  type ArrayNode,
  type Bound,
  type Json,
  type Node,
  type Nodes,
  type NumberNode,
  type ObjectNode,
  type Property,
  type StringNode,
  type UnionNode,
  stableText,
} from "./node.ts";

const MAX_UNION = 256;
const MAX_DEPTH = 64;

export class Algebra {
  readonly nodes: Nodes;
  private readonly definitions = new Map<string, Node>();
  private readonly met = new Map<string, { readonly node: Node; readonly narrowed: boolean }>();
  private readonly pending: Array<() => void> = [];
  private depth = 0;
  /**
   * How often something came out smaller than the schema says. Harmless in what answers are made of; what answers must avoid
   * (`not`, the other branches of `oneOf`, `if`) may hold none of it, or they would let invalid ones in.
   */
  narrowed = 0;
  /** The JSON pointer that refusals name; the reader keeps it current. */
  path = "";

  constructor(nodes: Nodes) {
    this.nodes = nodes;
  }

  /** Runs a step so that its refusals name this path. */
  at<T>(path: string, step: () => T): T {
    const before = this.path;
    this.path = path;
    try {
      return step();
    } finally {
      this.path = before;
    }
  }

  define(name: string, node: Node): void {
    this.definitions.set(name, node);
  }

  /** What a reference of this name stands for. */
  definition(name: string): Node {
    const node = this.definitions.get(name);
    if (node === undefined) throw unsupported(this.path, `A $ref (${name}) could not be resolved.`);
    return node;
  }

  /** Follows references until something else comes. Throws on a loop of references and nothing else. */
  resolve(node: Node): Node {
    let current = node;
    for (let steps = 0; current.kind === "ref"; steps++) {
      const target = this.definitions.get(current.name);
      if (target === undefined || steps > 1000) {
        throw unsupported(
          this.path,
          "A $ref leads back to itself here, where its meaning is needed to combine it with other keywords.",
        );
      }
      current = target;
    }
    return current;
  }

  union(options: readonly Node[]): Node {
    const flat = options.flatMap((option) => (option.kind === "union" ? option.options : [option]));
    const union = this.nodes.union(mergeObjects(this, flat));
    // Literals cost little; how many an `enum` may hold is the budget's matter.
    if (union.kind === "union" && union.options.filter(({ kind }) => kind !== "literal").length > MAX_UNION) {
      throw unsupported(this.path, `More than ${MAX_UNION} alternatives come together here.`);
    }
    return union;
  }

  intersect(a: Node, b: Node): Node {
    const { nodes } = this;
    if (a === b || b.kind === "any") return a;
    if (a.kind === "any") return b;
    if (a.kind === "never" || b.kind === "never") return nodes.never;
    const key = `${a.id}&${b.id}`;
    const known = this.met.get(key);
    if (known !== undefined) {
      if (known.narrowed) this.narrowed++;
      return known.node;
    }
    return this.deeper("Keywords combine here more deeply than can be followed.", () => {
      if (a.kind === "ref" || b.kind === "ref") return this.intersectReference(a, b, key);
      const before = this.narrowed;
      const node = this.intersectPlain(a, b);
      this.met.set(key, { node, narrowed: this.narrowed !== before });
      return node;
    });
  }

  /** Runs a step of a recursion that a hostile schema could make endless. */
  deeper<T>(message: string, step: () => T): T {
    if (this.depth >= MAX_DEPTH) throw unsupported(this.path, message);
    this.depth++;
    try {
      return step();
    } finally {
      this.depth--;
    }
  }

  /** A reference meets something else: the result gets a name of its own first, so that recursion finds it. */
  private intersectReference(a: Node, b: Node, key: string): Node {
    const name = `&${key}`;
    const reference = this.nodes.make({ kind: "ref", name });
    this.met.set(key, { node: reference, narrowed: false });
    const meet = () => this.define(name, this.intersect(this.resolve(a), this.resolve(b)));
    if (this.isResolvable(a) && this.isResolvable(b)) {
      meet();
      const result = this.definitions.get(name);
      return result?.kind === "never" || result?.kind === "literal" ? result : reference;
    }
    // One of them is still being read (a recursive schema): the meeting waits until everything is.
    const { path } = this;
    this.pending.push(() => {
      this.path = path;
      meet();
    });
    return reference;
  }

  /** Runs what waited for recursive definitions; call it when all is read. */
  finish(): void {
    for (let next = this.pending.shift(); next !== undefined; next = this.pending.shift()) next();
  }

  private isResolvable(node: Node): boolean {
    let current: Node | undefined = node;
    for (let steps = 0; current?.kind === "ref" && steps < 1000; steps++) current = this.definitions.get(current.name);
    return current !== undefined && current.kind !== "ref";
  }

  private intersectPlain(a: Node, b: Node): Node {
    const { nodes } = this;
    if (a.kind === "union" && b.kind === "union") {
      // Two lists of values: pair by pair they would take the product of their lengths.
      const values = (node: UnionNode) => node.options.every(({ kind }) => kind === "literal");
      if (values(a) && values(b)) {
        const both = new Set(b.options);
        return this.union(a.options.filter((option) => both.has(option)));
      }
    }
    if (a.kind === "union") return this.union(a.options.map((option) => this.intersect(option, b)));
    if (b.kind === "union") return this.union(b.options.map((option) => this.intersect(a, option)));
    if (a.kind === "literal") return this.admits(b, a.value) ? a : nodes.never;
    if (b.kind === "literal") return this.admits(a, b.value) ? b : nodes.never;
    if (a.kind === "string" && b.kind === "string") return this.intersectStrings(a, b);
    if (a.kind === "number" && b.kind === "number") return this.intersectNumbers(a, b);
    if (a.kind === "array" && b.kind === "array") return this.intersectArrays(a, b);
    if (a.kind === "object" && b.kind === "object") return this.intersectObjects(a, b);
    return a.kind === b.kind ? a : nodes.never;
  }

  private intersectStrings(a: StringNode, b: StringNode): Node {
    if (a.pattern !== undefined && b.pattern !== undefined && a.pattern.source !== b.pattern.source) {
      throw unsupported(
        this.path,
        "Two patterns (or a pattern and a format) for one string cannot be guaranteed together.",
      );
    }
    return this.text(Math.max(a.min, b.min), Math.min(a.max, b.max), a.pattern ?? b.pattern);
  }

  /** A string node whose pattern obeys the lengths, where a rewriting of it can. */
  text(min: number, max: number, pattern: StringNode["pattern"]): Node {
    if (pattern?.narrow === true && max < Infinity) this.narrowed++;
    if (pattern !== undefined && isNothing(pattern.regex)) return this.nodes.never;
    if (pattern === undefined || (min === 0 && max === Infinity))
      return this.nodes.make({ kind: "string", min, max, pattern });
    const cut = withLength(pattern.regex, min, max) ?? (pattern.short && withLength(pattern.short, min, max));
    if (cut === undefined) return this.nodes.make({ kind: "string", min, max, pattern: { ...pattern, uncut: true } });
    if (isNothing(cut)) return this.nodes.never;
    return this.nodes.make({ kind: "string", min, max, pattern: { ...pattern, regex: cut, uncut: false } });
  }

  private intersectNumbers(a: NumberNode, b: NumberNode): Node {
    const multipleOf =
      a.multipleOf === undefined || b.multipleOf === undefined
        ? (a.multipleOf ?? b.multipleOf)
        : leastCommonMultiple(a.multipleOf, b.multipleOf);
    return this.nodes.make({
      kind: "number",
      integer: a.integer || b.integer,
      min: tighter(a.min, b.min, 1),
      max: tighter(a.max, b.max, -1),
      multipleOf,
    });
  }

  private intersectArrays(a: ArrayNode, b: ArrayNode): Node {
    const length = Math.max(a.prefix.length, b.prefix.length);
    const prefix = Array.from({ length }, (_, i) => this.intersect(a.prefix[i] ?? a.items, b.prefix[i] ?? b.items));
    return this.nodes.make({
      kind: "array",
      prefix,
      items: this.intersect(a.items, b.items),
      min: Math.max(a.min, b.min),
      max: Math.min(a.max, b.max),
      unique: a.unique || b.unique,
    });
  }

  private intersectObjects(a: ObjectNode, b: ObjectNode): Node {
    if (a.patterns.length > 0 && b.patterns.length > 0) {
      const same = stableText(a.patterns.map((p) => p.source)) === stableText(b.patterns.map((p) => p.source));
      if (!same && !(a.additional.kind === "any" && b.additional.kind === "any")) {
        throw unsupported(
          this.path,
          "Several patternProperties with additionalProperties cannot be guaranteed together.",
        );
      }
    }
    const names = [...new Set([...a.properties, ...b.properties].map((property) => property.name))];
    const properties = names.map((name): Property => {
      const required = [a, b].some((node) =>
        node.properties.some((property) => property.name === name && property.required),
      );
      return { name, value: this.intersect(this.valueOf(a, name), this.valueOf(b, name)), required };
    });
    const patterns = new Map(a.patterns.map((pattern) => [pattern.source, pattern]));
    for (const pattern of b.patterns) {
      const other = patterns.get(pattern.source);
      patterns.set(
        pattern.source,
        other === undefined ? pattern : { ...other, value: this.intersect(other.value, pattern.value) },
      );
    }
    // What only one side's pattern knows is, for the other side, an additional name.
    const closed = [...patterns.values()].map((pattern) => {
      const inA = a.patterns.some((other) => other.source === pattern.source);
      const inB = b.patterns.some((other) => other.source === pattern.source);
      return {
        ...pattern,
        value: inA && inB ? pattern.value : this.intersect(pattern.value, inA ? b.additional : a.additional),
      };
    });
    return this.object({
      kind: "object",
      properties,
      patterns: closed,
      additional: this.intersect(a.additional, b.additional),
      implicit: a.implicit && b.implicit,
      names: this.intersect(a.names, b.names),
      min: Math.max(a.min, b.min),
      max: Math.min(a.max, b.max),
    });
  }

  /** An object node whose names already obey `names`: a finite choice of names becomes properties. */
  object(shape: ObjectNode): Node {
    const { nodes } = this;
    if (shape.names.kind === "any" || shape.names.kind === "ref") return nodes.make(shape);
    const options = shape.names.kind === "union" ? shape.names.options : [shape.names];
    const literals = options.flatMap((option) =>
      option.kind === "literal" && typeof option.value === "string" ? [option.value] : [],
    );
    const properties = shape.properties.map((property) =>
      this.admits(shape.names, property.name) ? property : { ...property, value: nodes.never },
    );
    if (literals.length < options.length) return nodes.make({ ...shape, properties });
    const others = literals.filter((name) => !properties.some((property) => property.name === name));
    const known = [
      ...properties,
      ...others.map((name) => ({ name, value: this.valueOf(shape, name), required: false })),
    ];
    return nodes.make({
      ...shape,
      properties: known,
      patterns: [],
      additional: nodes.never,
      implicit: false,
      names: nodes.any,
    });
  }

  /** What the object says about the value under this name, whether or not it knows the name. */
  valueOf(node: ObjectNode, name: string): Node {
    const known = node.properties.find((property) => property.name === name);
    // `properties` were met with their patterns when they were read.
    if (known !== undefined) return known.value;
    const matching = node.patterns.filter((pattern) => new RegExp(pattern.source, "u").test(name));
    if (matching.length > 0)
      return matching.reduce((value, pattern) => this.intersect(value, pattern.value), this.nodes.any);
    return node.additional;
  }

  /** True when `value` satisfies `node`. */
  admits(node: Node, value: Json): boolean {
    const plain = this.resolve(node);
    switch (plain.kind) {
      case "any":
        return true;
      case "never":
        return false;
      case "null":
        return value === null;
      case "boolean":
        return typeof value === "boolean";
      case "literal":
        return stableText(plain.value) === stableText(value);
      case "union":
        return plain.options.some((option) => this.admits(option, value));
      case "string": {
        if (typeof value !== "string") return false;
        const length = Array.from(value).length;
        if (length < plain.min || length > plain.max) return false;
        if (plain.pattern === undefined || new RegExp(plain.pattern.source, "u").test(value)) return true;
        if (plain.pattern.narrow) this.narrowed++;
        return false;
      }
      case "number":
        return typeof value === "number" && admitsNumber(plain, value);
      case "array":
        return this.admitsArray(plain, value);
      case "object":
        return this.admitsObject(plain, value);
      case "ref":
        return false;
    }
  }

  private admitsArray(node: ArrayNode, value: Json): boolean {
    if (!isArray(value) || value.length < node.min || value.length > node.max) return false;
    if (node.unique && new Set(value.map(stableText)).size !== value.length) return false;
    return value.every((item, i) => this.admits(node.prefix[i] ?? node.items, item));
  }

  private admitsObject(node: ObjectNode, value: Json): boolean {
    if (!isObject(value)) return false;
    const names = Object.keys(value);
    if (names.length < node.min || names.length > node.max) return false;
    if (node.properties.some((property) => property.required && !Object.hasOwn(value, property.name))) return false;
    return names.every(
      (name) => this.admits(node.names, name) && this.admits(this.valueOf(node, name), value[name] ?? null),
    );
  }

  /** True only when no value can satisfy both; false when that cannot be shown. */
  areDisjoint(a: Node, b: Node): boolean {
    const before = this.narrowed;
    try {
      return this.resolve(this.intersect(a, b)).kind === "never" && this.narrowed === before;
    } catch (error) {
      if (error instanceof Error && error.name === "Refusal") return false;
      throw error;
    }
  }
}

function tighter(a: Bound | undefined, b: Bound | undefined, direction: 1 | -1): Bound | undefined {
  if (a === undefined || b === undefined) return a ?? b;
  if (a.value === b.value) return a.exclusive ? a : b;
  return (a.value - b.value) * direction > 0 ? a : b;
}

function leastCommonMultiple(a: number, b: number): number {
  let [x, y] = [a, b];
  while (y !== 0) [x, y] = [y, x % y];
  return (a / x) * b;
}

export function admitsNumber(node: NumberNode, value: number): boolean {
  if (node.integer && !Number.isInteger(value)) return false;
  if (node.multipleOf !== undefined && value % node.multipleOf !== 0) return false;
  const { min, max } = node;
  if (min !== undefined && (min.exclusive ? value <= min.value : value < min.value)) return false;
  return !(max !== undefined && (max.exclusive ? value >= max.value : value > max.value));
}

export function isArray(value: unknown): value is readonly Json[] {
  return Array.isArray(value);
}

export function isObject(value: unknown): value is { readonly [key: string]: Json } {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
