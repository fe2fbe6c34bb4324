// Where a `$ref` leads, inside one document.
import { invalid, unsupported } from "../refusal.ts";
import { isArray, isObject } from "./algebra.ts";
import type { Json } from "./node.ts";

/** `#`, `#/pointer` or `#anchor`, decoded; equal references have one name. Throws for other documents. */
export function referenceName(document: Json, reference: string, path: string): string {
  const base = isObject(document) && typeof document.$id === "string" ? document.$id.replace(/#$/, "") : "";
  const local =
    base !== "" && reference.startsWith(`${base}#`)
      ? reference.slice(base.length)
      : base !== "" && reference === base
        ? "#"
        : reference;
  if (!local.startsWith("#")) throw unsupported(path, "`$ref` to another document is not supported: only `#...` is.");
  return `#${decodePointer(local.slice(1))}`;
}

/** The part of the document that a name of `referenceName` stands for. */
export function referenceTarget(document: Json, name: string, path: string): Json {
  if (name !== "#" && !name.startsWith("#/")) {
    const anchor = name.slice(1);
    const found = findAnchor(document, anchor);
    if (found === undefined) throw invalid(path, `\`$ref\` names the anchor \`${anchor}\`, which does not exist.`);
    return found;
  }
  let current: Json = document;
  for (const step of name.split("/").slice(1)) {
    const key = step.replaceAll("~1", "/").replaceAll("~0", "~");
    const next: Json | undefined = isArray(current)
      ? current[Number(key)]
      : isObject(current) && Object.hasOwn(current, key)
        ? current[key]
        : undefined;
    if (next === undefined) throw invalid(path, "`$ref` points at nothing.");
    if (isObject(next) && typeof next.$id === "string" && !next.$id.startsWith("#")) {
      throw unsupported(path, "`$ref` into a part with an `$id` of its own is not supported.");
    }
    current = next;
  }
  return current;
}

function decodePointer(fragment: string): string {
  try {
    return decodeURIComponent(fragment);
  } catch {
    return fragment;
  }
}

function findAnchor(value: Json, anchor: string): Json | undefined {
  if (isArray(value)) {
    for (const item of value) {
      const found = findAnchor(item, anchor);
      if (found !== undefined) return found;
    }
    return undefined;
  }
  if (!isObject(value)) return undefined;
  if (value.$anchor === anchor || value.$id === `#${anchor}` || value.id === `#${anchor}`) return value;
  // Instances inside a schema are no schemas.
  const { enum: _enum, const: _const, default: _default, examples: _examples, ...schemas } = value;
  return findAnchor(Object.values(schemas), anchor);
}
