// Nodes to states: one fragment for each node, called from wherever the node is used, so that a shared part costs once.
import { LRUCache } from "lru-cache";
import type { GrammarPolicy } from "../grammar.ts";
import { tooComplex, unsupported } from "../refusal.ts";
import { ANY_CHARACTER, type Regex, repeat } from "../regex/ast.ts";
import { parseFullPattern } from "../regex/parse.ts";
import type { Algebra } from "../schema/algebra.ts";
import { isArray, isObject } from "../schema/algebra.ts";
import type { ArrayNode, Json, Node, NumberNode, StringNode } from "../schema/node.ts";
import { numberPattern } from "../lower/numbers.ts";
import type { Builder } from "./builder.ts";
import { MAX_COUNT, Op } from "./format.ts";
import { byBytes, listedMembers } from "./members.ts";
import { objectStates } from "./objects.ts";
import { Marks } from "./space.ts";
import { cutDfa, dfaStates, textStates } from "./text.ts";

const numbers = new LRUCache<string, Regex>({ max: 1_000 });

function parsedNumber(pattern: string): Regex {
  const known = numbers.get(pattern);
  if (known !== undefined) return known;
  const regex = parseFullPattern(pattern);
  numbers.set(pattern, regex);
  return regex;
}

/** Nobody is shown longer texts or lists than this; a stricter limit never lets an invalid one in. */
function atMost(max: number): number {
  return max === Infinity ? max : Math.min(max, MAX_COUNT);
}

export class Values {
  private readonly builder: Builder;
  private readonly algebra: Algebra;
  private readonly origins: ReadonlyMap<number, string>;
  private readonly policy: GrammarPolicy;
  private readonly marks: Marks;
  private readonly entries = new Map<number, number>();
  private path = "";

  constructor(builder: Builder, algebra: Algebra, origins: ReadonlyMap<number, string>, policy: GrammarPolicy) {
    this.builder = builder;
    this.algebra = algebra;
    this.origins = origins;
    this.policy = policy;
    this.marks = new Marks(builder, policy);
  }

  /** First state of a value of this node; it returns behind the value. Throws Refusal. */
  value(node: Node): number {
    if (node.kind === "ref") return this.value(this.algebra.resolve(node));
    const known = this.entries.get(node.id);
    if (known !== undefined) return known;
    const entry = this.builder.reserve();
    this.entries.set(node.id, entry);
    const before = this.path;
    this.path = this.origins.get(node.id) ?? this.path;
    this.builder.fill(entry, Op.jump, [this.states(node)], []);
    this.path = before;
    return entry;
  }

  private states(node: Node): number {
    const { builder } = this;
    switch (node.kind) {
      case "any":
        return builder.any(this.algebra.nodes.everyType.map((type) => this.value(this.openly(type))));
      case "never":
        return builder.reserve();
      case "null":
        return builder.text("null", builder.back);
      case "boolean":
        return builder.any([builder.text("true", builder.back), builder.text("false", builder.back)]);
      case "literal":
        return this.literal(node.value, builder.back);
      case "union":
        return builder.any(node.options.map((option) => this.value(option)));
      case "string":
        return this.string(node);
      case "number":
        return this.number(node);
      case "array":
        return node.unique && node.max > 1 ? this.distinct(node) : this.array(node);
      case "object":
        return objectStates(
          {
            builder,
            algebra: this.algebra,
            policy: this.policy,
            marks: this.marks,
            value: (inner) => this.value(inner),
            path: this.path,
          },
          node,
        );
      case "ref":
        throw unsupported(this.path, "A $ref could not be resolved.");
    }
  }

  /** Inside `any`, an object is open: there is nothing listed that it could be closed to. */
  private openly(node: Node): Node {
    return node.kind === "object" ? this.algebra.nodes.make({ ...node, implicit: false }) : node;
  }

  private literal(value: Json, next: number): number {
    const { builder, marks } = this;
    if (!isArray(value) && !isObject(value)) return builder.text(JSON.stringify(value), next);
    const items: ReadonlyArray<readonly [string | undefined, Json]> = isArray(value)
      ? value.map((item) => [undefined, item] as const)
      : Object.entries(value);
    const [open, close] = isArray(value) ? (["[", "]"] as const) : (["{", "}"] as const);
    // The brackets are a fragment of their own, as the mark that closes them returns.
    let inner = marks.close(close);
    for (const [i, [key, item]] of [...items.entries()].toReversed()) {
      inner = this.literal(item, inner);
      if (key !== undefined) inner = builder.text(JSON.stringify(key), marks.colon(inner));
      if (i > 0) inner = marks.comma(inner);
    }
    const fragment = marks.open(open, inner);
    return next === builder.back ? fragment : builder.op(Op.call, fragment, next);
  }

  private string(node: StringNode): number {
    const { builder } = this;
    const { pattern, min, max } = node;
    if (pattern === undefined && min > MAX_COUNT)
      throw tooComplex(this.path, `A \`minLength\` above ${MAX_COUNT} is not supported.`);
    const ending = { quote: true, target: builder.back };
    const body = this.named(() =>
      pattern?.uncut === true
        ? dfaStates(builder, cutDfa(node, pattern.regex, this.path, builder.fuel), "json", ending)
        : textStates(builder, pattern?.regex ?? repeat(ANY_CHARACTER, min, atMost(max)), "json", ending),
    );
    return builder.bytes(0x22, 0x22, body);
  }

  private number(node: NumberNode): number {
    const pattern = numberPattern(node);
    if (pattern === undefined) return this.builder.reserve();
    if (typeof pattern !== "string") throw unsupported(this.path, pattern.refused);
    return this.named(() =>
      textStates(this.builder, parsedNumber(pattern), "plain", { quote: false, target: this.builder.back }),
    );
  }

  /** Refusals from below do not know where they are. */
  private named<T>(step: () => T): T {
    return this.algebra.at(this.path, step);
  }

  private array(node: ArrayNode): number {
    const { builder, marks } = this;
    const close = marks.close("]");
    const { prefix, min } = node;
    const max = node.items.kind === "never" ? Math.min(node.max, prefix.length) : node.max;
    if (min > MAX_COUNT) throw tooComplex(this.path, `A \`minItems\` above ${MAX_COUNT} is not supported.`);
    const most = atMost(max);
    if (min > most) return builder.reserve();
    const fixed = Math.min(prefix.length, most);
    let rest = this.rest(node, fixed, min, most, close);
    for (let i = fixed - 1; i >= 0; i--) {
      const item = prefix[i];
      if (item === undefined) continue;
      const here = builder.op(Op.call, this.value(item), rest);
      const next = i > 0 ? marks.comma(here) : here;
      rest = i >= min ? builder.any([close, next]) : next;
    }
    return marks.open("[", rest);
  }

  /** Items of one schema once `from` are written, and the end. */
  private rest(node: ArrayNode, from: number, min: number, max: number, close: number): number {
    const { builder, marks } = this;
    if (max <= from) return close;
    const item = this.value(node.items);
    const least = Math.max(0, min - from);
    if (max === Infinity && least <= 1) {
      const after = builder.reserve();
      const more = marks.comma(builder.op(Op.call, item, after));
      builder.fill(after, Op.split, [close, more], []);
      const first = from > 0 ? more : builder.op(Op.call, item, after);
      return least === 0 ? builder.any([close, first]) : first;
    }
    const limit = max - from;
    const head = builder.reserve();
    const after = builder.reserve();
    const more = marks.comma(builder.op(Op.call, item, after));
    builder.fill(after, Op.count, [least, limit, more, close], []);
    builder.fill(head, Op.count, [least, limit, from > 0 ? more : builder.op(Op.call, item, after), close], []);
    return builder.op(Op.push, head);
  }

  /** `uniqueItems` over finitely many values: each may come once, in any order. */
  private distinct(node: ArrayNode): number {
    const { builder, marks } = this;
    const items = this.algebra.resolve(node.items);
    const options = (items.kind === "union" ? items.options : [items]).flatMap((option): Json[] | undefined[] => {
      if (option.kind === "boolean") return [false, true];
      if (option.kind === "null") return [null];
      return option.kind === "literal" && !isArray(option.value) && !isObject(option.value)
        ? [option.value]
        : [undefined];
    });
    const where = this.path.endsWith("/uniqueItems") ? this.path : `${this.path}/uniqueItems`;
    if (node.prefix.length > 0 || options.includes(undefined)) {
      throw unsupported(where, "`uniqueItems: true` is only supported where the items are an `enum` of plain values.");
    }
    const texts = options.map((option) => JSON.stringify(option)).sort(byBytes);
    if (node.min > texts.length) return builder.reserve();
    const max = node.max >= texts.length ? Infinity : node.max;
    const set = builder.set({
      members: texts.map((_, order) => ({ order, required: false, forbidden: false })),
      ordered: false,
      others: false,
      counted: node.min > 0 || max !== Infinity,
      min: node.min,
      max,
    });
    const close = marks.close("]");
    const after = builder.reserve();
    const item = listedMembers(
      builder,
      set,
      texts,
      texts.map((_, k) => builder.op(Op.take, set, k, after)),
    );
    builder.fill(after, Op.head, [set, close, marks.comma(item)], []);
    return marks.open("[", builder.op(Op.open, set, builder.op(Op.head, set, close, item)));
  }
}
