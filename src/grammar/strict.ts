// OpenAI's `strict: true`: every object lists its properties, requires all of them and allows no other.
import { below, unsupported } from "./refusal.ts";
import { isArray, isObject } from "./schema/algebra.ts";
import type { Json } from "./schema/node.ts";

const SCHEMA_KEYWORDS = ["additionalProperties", "items", "not", "if", "then", "else", "contains", "propertyNames"];
const SCHEMA_LISTS = ["anyOf", "oneOf", "allOf", "prefixItems"];
const SCHEMA_MAPS = ["properties", "$defs", "definitions", "patternProperties"];

/** Throws a Refusal at the first object that breaks the strict profile. */
export function checkStrictProfile(schema: Json): void {
  if (!isObject(schema) || (schema.type !== "object" && !Object.hasOwn(schema, "$ref"))) {
    throw unsupported("/type", "With `strict: true` the root of the schema must be an object.");
  }
  visit(schema, "");
}

function visit(schema: Json, path: string): void {
  if (!isObject(schema)) return;
  const types = isArray(schema.type) ? schema.type : [schema.type];
  if (types.includes("object") || Object.hasOwn(schema, "properties")) checkObject(schema, path);
  for (const keyword of SCHEMA_KEYWORDS) {
    const inner = schema[keyword];
    if (inner !== undefined) visit(inner, below(path, keyword));
  }
  for (const keyword of [...SCHEMA_LISTS, "items"]) {
    const list = schema[keyword];
    if (isArray(list)) for (const [i, item] of list.entries()) visit(item, below(below(path, keyword), i));
  }
  for (const keyword of SCHEMA_MAPS) {
    const map = schema[keyword];
    if (isObject(map)) for (const [name, item] of Object.entries(map)) visit(item, below(below(path, keyword), name));
  }
}

function checkObject(schema: { readonly [key: string]: Json }, path: string): void {
  if (schema.additionalProperties !== false) {
    throw unsupported(
      below(path, "additionalProperties"),
      "With `strict: true` every object needs `additionalProperties: false`.",
    );
  }
  const names = isObject(schema.properties) ? Object.keys(schema.properties) : [];
  const required = isArray(schema.required) ? schema.required : [];
  const missing = names.find((name) => !required.includes(name));
  if (missing !== undefined) {
    throw unsupported(
      below(path, "required"),
      `With \`strict: true\` every property must be in \`required\`: \`${missing}\` is not.`,
    );
  }
}
