// Random schemas, values and answers for the tests of the automaton; the same seed gives the same.
import { isArray, isObject } from "../schema/algebra.ts";
import type { Json } from "../schema/node.ts";
import type { ByteMatcher } from "./matcher.ts";

export type Random = () => number;

/** mulberry32. */
export function seeded(seed: number): Random {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export function pick<T>(random: Random, list: readonly [T, ...T[]]): T {
  return list[Math.floor(random() * list.length)] ?? list[0];
}

const NAMES = ["a", "b", "ab", "abc", "é", 'x"y', "name", "nam", "日本"] as const;
const TEXTS = ["", "a", "ab", "abc", "hello", "é", "日本語", 'q"\\/\n\u0001', "2024-02-29", "😀x"] as const;
const PATTERNS = [
  "^[a-z]{1,3}$",
  "a",
  "^ab?c*$",
  "^(foo|bar)+$",
  "b$",
  "^[^a]*$",
  "^\\d{2,40}$",
  "^.{0,3}$",
  "[é-ü]",
] as const;
const FORMATS = ["date", "uuid", "ipv4", "email", "date-time"] as const;

export interface SchemaStyle {
  /** Only keywords that the automaton keeps exactly, so that it must agree with a validator on every value. */
  readonly exact: boolean;
}

type Draw = { [key: string]: Json };

/** A schema of at most `depth` levels. */
export function randomSchema(random: Random, depth: number, style: SchemaStyle): Json {
  const chance = (part: number) => random() < part;
  const below = () => randomSchema(random, depth - 1, style);
  if (chance(0.03)) return true;
  const kinds = ["integer", "number", "string", "boolean", "null", "enum", "const"];
  if (depth > 0) kinds.push("object", "object", "object", "array", "array", "anyOf", "types");
  if (depth > 0 && !style.exact) kinds.push("oneOf", "allOf", "not", "if", "dependent", "ref");
  const kind = kinds[Math.floor(random() * kinds.length)] ?? "null";
  const small = (most: number) => Math.floor(random() * (most + 1));
  switch (kind) {
    case "integer":
    case "number": {
      const schema: Draw = { type: kind };
      const low = small(40) - 20;
      if (chance(0.4)) schema[chance(0.7) ? "minimum" : "exclusiveMinimum"] = low;
      if (chance(0.4)) schema[chance(0.7) ? "maximum" : "exclusiveMaximum"] = low + small(300) + 2;
      if (kind === "integer" && chance(0.2)) schema.multipleOf = 1 + small(6);
      if (schema.multipleOf !== undefined) Object.assign(schema, { minimum: low, maximum: low + 300 });
      return schema;
    }
    case "string": {
      const schema: Draw = { type: "string" };
      if (chance(0.3)) schema.minLength = small(3);
      if (chance(0.3)) schema.maxLength = 3 + small(60);
      if (chance(0.3)) return { type: "string", pattern: pick(random, PATTERNS) };
      if (!style.exact && chance(0.2)) return { ...schema, format: pick(random, FORMATS) };
      return schema;
    }
    case "enum":
      return { enum: [...new Set(Array.from({ length: 1 + small(5) }, () => scalar(random)))] };
    case "const":
      return { const: chance(0.3) ? { a: [scalar(random)], b: {} } : scalar(random) };
    case "types":
      return { type: ["string", "integer", "null"].slice(small(1)), minLength: 1, maximum: 5 };
    case "array": {
      if (chance(0.15))
        return { type: "array", items: { enum: ["x", "xy", 1, 12, null] }, uniqueItems: true, minItems: small(2) };
      const schema: Draw = { type: "array", items: below() };
      if (chance(0.3)) schema.minItems = small(3);
      if (chance(0.3)) schema.maxItems = 3 + small(30);
      if (chance(0.3)) schema.prefixItems = [below(), below()].slice(small(1));
      return schema;
    }
    case "object":
      return objectSchema(random, below, style);
    case "anyOf":
      return { anyOf: [below(), below()] };
    case "oneOf":
      return { oneOf: [below(), below(), { type: "null" }] };
    case "allOf":
      return { allOf: [below(), objectSchema(random, below, style)] };
    case "not":
      return {
        type: ["string", "integer", "boolean", "null"],
        not: chance(0.5) ? { type: "string" } : { enum: ["a", 1] },
      };
    case "if":
      return {
        type: "object",
        properties: { kind: { enum: ["x", "y"] }, v: below() },
        required: ["kind"],
        additionalProperties: false,
        if: { properties: { kind: { const: "x" } } },
        // biome-ignore lint/suspicious/noThenProperty: a keyword of JSON Schema.
        then: { required: ["v"] },
      };
    case "dependent":
      return {
        type: "object",
        properties: { a: below(), b: below() },
        additionalProperties: false,
        dependentRequired: { a: ["b"] },
      };
    case "ref":
      return { $ref: "#/$defs/tree" };
    default:
      return { type: kind };
  }
}

/** The root, with the definition that a drawn `$ref` names. */
export function rootSchema(random: Random, style: SchemaStyle): Json {
  const schema = randomSchema(random, 3, style);
  if (!isObject(schema) || style.exact) return schema;
  return {
    ...schema,
    $defs: {
      tree: {
        type: "object",
        properties: { v: { type: "integer" }, kids: { type: "array", items: { $ref: "#/$defs/tree" }, maxItems: 2 } },
        required: ["v"],
        additionalProperties: false,
      },
    },
  };
}

function objectSchema(random: Random, below: () => Json, style: SchemaStyle): Json {
  const chance = (part: number) => random() < part;
  const names = NAMES.filter(() => chance(0.35));
  const schema: Draw = { type: "object", properties: Object.fromEntries(names.map((name) => [name, below()])) };
  schema.required = names.filter(() => chance(0.4));
  if (chance(0.6)) schema.additionalProperties = chance(0.5) ? false : below();
  if (chance(0.25)) schema.patternProperties = { "^a": below(), ...(chance(0.5) ? { b: below() } : {}) };
  if (chance(0.15)) schema.propertyNames = chance(0.5) ? { maxLength: 3 } : { pattern: "^[a-n]" };
  if (chance(0.2)) schema.maxProperties = 1 + Math.floor(random() * 4);
  if (!style.exact && chance(0.2)) schema.minProperties = Math.floor(random() * 3);
  return schema;
}

function scalar(random: Random): Json {
  return random() < 0.5 ? pick(random, TEXTS) : pick<Json>(random, [0, 1, -1, 12, 1.5, true, false, null]);
}

/** Any value, of the names and texts that the schemas are made of. */
export function randomValue(random: Random, depth: number): Json {
  const roll = random();
  if (depth === 0 || roll < 0.4) return scalar(random);
  if (roll < 0.55) return Array.from({ length: Math.floor(random() * 4) }, () => randomValue(random, depth - 1));
  const names = NAMES.filter(() => random() < 0.3);
  return Object.fromEntries(names.map((name) => [name, randomValue(random, depth - 1)]));
}

/** The value with one thing changed somewhere. */
export function mutated(random: Random, value: Json): Json {
  if (isArray(value) && value.length > 0 && random() < 0.8) {
    const at = Math.floor(random() * value.length);
    if (random() < 0.2) return value.filter((_, i) => i !== at);
    return value.map((item, i) => (i === at ? mutated(random, item) : item));
  }
  if (isObject(value) && random() < 0.8) {
    const names = Object.keys(value);
    const at = names[Math.floor(random() * names.length)];
    if (at === undefined || random() < 0.25) return { ...value, [pick(random, NAMES)]: randomValue(random, 1) };
    const { [at]: old = null, ...others } = value;
    return random() < 0.3 ? others : { ...value, [at]: mutated(random, old) };
  }
  if (typeof value === "string" && random() < 0.5) return value + pick(random, ["a", "b", "é", "1"]);
  if (typeof value === "number" && random() < 0.5) return Number((value + pick(random, [1, -1, 0.5, 100])).toFixed(3));
  return randomValue(random, 1);
}

/** Bytes that end values; a walk that has gone on for long prefers them. */
const CLOSING = new Set([...'"}],'].map((character) => character.charCodeAt(0)));

/**
 * A random text by the matcher alone: complete, or undefined where it ran past `limit` bytes. Throws where nothing may come
 * although the text is not complete.
 */
export function randomText(random: Random, matcher: ByteMatcher, limit: number): string | undefined {
  const bytes: number[] = [];
  while (bytes.length < limit) {
    const ranges = matcher.nextBytes();
    if (matcher.complete() && (ranges.length === 0 || random() < 0.6))
      return new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(bytes));
    if (ranges.length === 0) throw new Error(`dead end after ${new TextDecoder().decode(Uint8Array.from(bytes))}`);
    const all = Array.from(
      { length: ranges.length / 2 },
      (_, i) => [ranges[2 * i] ?? 0, ranges[2 * i + 1] ?? 0] as const,
    );
    const closing = all.flatMap(([low, high]) => [...CLOSING].filter((byte) => low <= byte && byte <= high));
    const [low, high] = all[Math.floor(random() * all.length)] ?? [0, 0];
    const byte =
      closing.length > 0 && random() < 0.2 + bytes.length / 100
        ? (closing[Math.floor(random() * closing.length)] ?? low)
        : low + Math.floor(random() * (high - low + 1));
    if (!matcher.byte(byte)) throw new Error(`nextBytes offered ${byte}, which may not come`);
    bytes.push(byte);
  }
  return undefined;
}
