// Objects: the set of their keys, and what stands around it.
import type { GrammarPolicy } from "../grammar.ts";
import { tooComplex, unsupported } from "../refusal.ts";
import { ANY_CHARACTER, choice, literal, NOTHING, type Regex, repeat } from "../regex/ast.ts";
import type { Algebra } from "../schema/algebra.ts";
import type { Node, ObjectNode, Property } from "../schema/node.ts";
import type { Builder } from "./builder.ts";
import { type CharDfa, charDfa, product } from "./chars.ts";
import { MAX_COUNT, Op } from "./format.ts";
import { byBytes, listedMembers, openKeys, type OtherKeys } from "./members.ts";
import type { Marks } from "./space.ts";
import { cutDfa } from "./text.ts";

/** What an object asks of the values under its keys. */
export interface ObjectParts {
  readonly builder: Builder;
  readonly algebra: Algebra;
  readonly policy: GrammarPolicy;
  readonly marks: Marks;
  /** First state of a value; it returns. */
  readonly value: (node: Node) => number;
  /** Names the place of the schema that refusals speak of. */
  readonly path: string;
}

/** First state of the object's text, after which it returns. */
export function objectStates(parts: ObjectParts, node: ObjectNode): number {
  const { builder, marks, policy } = parts;
  const ordered = policy.propertyOrder === "schema";
  const others = otherKeys(parts, node);
  const listed = node.properties
    .filter(({ value }) => value.kind !== "never")
    .map((property, order) => ({ ...property, order }));
  const close = marks.close("}");
  if (others === undefined && ordered && listed.length > 0 && listed.every(({ required }) => required)) {
    if (node.max < listed.length) return builder.reserve();
    if (node.min <= listed.length) return chain(parts, listed, close);
  }
  // A forbidden name must still be known, or it would come as another key.
  const known = others === undefined ? listed : withForbidden(node, listed);
  const members = [...known].sort((a, b) => byBytes(a.name, b.name));
  const required = listed.filter((property) => property.required).length;
  const max = others === undefined && node.max >= listed.length ? Infinity : node.max;
  if (node.min > MAX_COUNT || (max !== Infinity && max > MAX_COUNT))
    throw tooComplex(parts.path, `A number of members above ${MAX_COUNT} is not supported.`);
  const set = builder.set({
    members: members.map(({ order, required, value }) => ({ order, required, forbidden: value.kind === "never" })),
    ordered,
    others: others !== undefined,
    counted: node.min > required || max !== Infinity,
    min: node.min,
    max,
  });
  const after = builder.reserve();
  const take = (k: number, value: Node) =>
    builder.op(Op.take, set, k, marks.colon(builder.op(Op.call, parts.value(value), after)));
  const takes = members.map(({ value }, k) => (value.kind === "never" ? builder.reserve() : take(k, value)));
  const keys =
    others === undefined
      ? listedMembers(
          builder,
          set,
          members.map(({ name }) => JSON.stringify(name).slice(1)),
          takes,
        )
      : openKeys(
          builder,
          set,
          members.map(({ name }) => name),
          takes,
          others((value) => take(members.length, value)),
        );
  const key = builder.bytes(0x22, 0x22, keys);
  builder.fill(after, Op.head, [set, close, marks.comma(key)], []);
  return marks.open("{", builder.op(Op.open, set, builder.op(Op.head, set, close, key)));
}

/** All members, one after the other: nothing is to be remembered. */
function chain(parts: ObjectParts, listed: readonly Property[], close: number): number {
  const { builder, marks } = parts;
  let next = close;
  for (const [i, { name, value }] of [...listed.entries()].toReversed()) {
    const after = marks.colon(builder.op(Op.call, parts.value(value), next));
    const key = builder.text(JSON.stringify(name), after);
    next = i === 0 ? key : marks.comma(key);
  }
  return marks.open("{", next);
}

type Listed = Property & { readonly order: number };

function withForbidden(node: ObjectNode, listed: readonly Listed[]): Listed[] {
  const forbidden = node.properties.filter(({ value }) => value.kind === "never");
  return [...listed, ...forbidden.map((property, i) => ({ ...property, required: false, order: listed.length + i }))];
}

type MakeOthers = (take: (value: Node) => number) => OtherKeys;

/** Keys that are not listed; undefined when there can be none. */
function otherKeys(parts: ObjectParts, node: ObjectNode): MakeOthers | undefined {
  const { algebra, builder, policy } = parts;
  const says = node.patterns.length > 0 || node.properties.some(({ value }) => value.kind !== "never");
  const short =
    node.patterns.length === 0 && node.min > node.properties.filter(({ value }) => value.kind !== "never").length;
  // Silence about other names is taken as "none" when an answer is written: a model that may invent members seldom stops.
  const closed = node.implicit && says && !short && policy.propertyOrder === "schema";
  const additional = closed ? algebra.nodes.never : node.additional;
  if (additional.kind === "never" && node.patterns.every(({ value }) => value.kind === "never")) return undefined;
  const patterns = node.patterns.map(({ regex }) => charDfa(regex, builder.fuel));
  const names = namesDfa(parts, node.names);
  const automata: CharDfa[] = [names, ...patterns];
  // Where no pattern can match any more, only additional names are left.
  const open = additional.kind !== "never";
  const states = product(
    automata,
    ([name = -1, ...rest]) => name >= 0 && (open || rest.some((part) => part >= 0)),
    builder.fuel,
  );
  const valueAt = (state: number): Node => {
    const { parts: at = [] } = states[state] ?? {};
    if (names[at[0] ?? -1]?.accepting !== true) return algebra.nodes.never;
    const matching = node.patterns.filter((_, i) => patterns[i]?.[at[i + 1] ?? -1]?.accepting === true);
    if (matching.length === 0) return additional;
    return algebra.at(parts.path, () =>
      matching.reduce((all, { value }) => algebra.intersect(all, value), algebra.nodes.any),
    );
  };
  return (take) => {
    const taken = new Map<number, number>();
    return {
      start: 0,
      edges: (state) => states[state]?.edges ?? [],
      accept: (state) => {
        const value = valueAt(state);
        if (algebra.resolve(value).kind === "never") return undefined;
        let next = taken.get(value.id);
        if (next === undefined) {
          next = take(value);
          taken.set(value.id, next);
        }
        return next;
      },
    };
  };
}

const ANY_NAME = repeat(ANY_CHARACTER, 0, Infinity);
const MAX_NAME_LENGTH = 1_000;

function namesDfa(parts: ObjectParts, names: Node): CharDfa {
  const node = parts.algebra.resolve(names);
  const { fuel } = parts.builder;
  if (node.kind === "string" && node.pattern?.uncut === true)
    return cutDfa(node, node.pattern.regex, `${parts.path}/propertyNames`, fuel);
  return charDfa(namesRegex(parts, node), fuel);
}

function namesRegex(parts: ObjectParts, names: Node): Regex {
  const node = parts.algebra.resolve(names);
  const where = `${parts.path}/propertyNames`;
  switch (node.kind) {
    case "any":
      return ANY_NAME;
    case "union":
      return choice(node.options.map((option) => namesRegex(parts, option)));
    case "literal":
      return typeof node.value === "string" ? literal(node.value) : NOTHING;
    case "string":
      if (node.pattern?.uncut === true)
        throw unsupported(where, "A length limit beside a pattern among alternatives of names is not supported.");
      if (node.pattern !== undefined) return node.pattern.regex;
      if (node.min > MAX_NAME_LENGTH || (node.max !== Infinity && node.max > MAX_NAME_LENGTH))
        throw unsupported(where, `Lengths of names above ${MAX_NAME_LENGTH} are not supported.`);
      return repeat(ANY_CHARACTER, node.min, node.max);
    default:
      return NOTHING;
  }
}
