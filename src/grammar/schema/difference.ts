// What one schema admits and another does not: for `not`, `oneOf`, `if`.
import { unsupported } from "../refusal.ts";
import type { Algebra } from "./algebra.ts";
import type { Node, NumberNode, ObjectNode } from "./node.ts";

/**
 * Part of what `a` admits and `b` does not; as much of it as can be said. Where that is less than all, the algebra is told:
 * the result may then stand for answers, and never for what answers must avoid. Throws when nothing of it can be said.
 */
export function subtract(algebra: Algebra, a: Node, b: Node): Node {
  return algebra.deeper("What is excluded here is nested too deeply to be expressed.", () =>
    subtractPlain(algebra, a, b),
  );
}

function subtractPlain(algebra: Algebra, a: Node, b: Node): Node {
  const { nodes } = algebra;
  const left = algebra.resolve(a);
  const right = algebra.resolve(b);
  if (right.kind === "any" || left.kind === "never") return nodes.never;
  if (right.kind === "never") return a;
  if (left.kind === "any") return subtract(algebra, algebra.union(nodes.everyType), right);
  if (left.kind === "union") return algebra.union(left.options.map((option) => subtract(algebra, option, right)));
  if (right.kind === "union") return right.options.reduce((rest, option) => subtract(algebra, rest, option), left);
  if (left.kind === "literal") return algebra.admits(right, left.value) ? nodes.never : left;
  if (algebra.areDisjoint(left, right)) return left;
  if (left === right) return nodes.never;
  if (left.kind === "boolean" && right.kind === "literal")
    return nodes.make({ kind: "literal", value: right.value !== true });
  if (left.kind === "string" && right.kind === "literal" && right.value === "") {
    return algebra.intersect(left, nodes.make({ kind: "string", min: 1, max: Infinity, pattern: undefined }));
  }
  if (left.kind === "string" && right.kind === "string" && right.pattern === undefined) {
    const shorter = nodes.make({ kind: "string", min: 0, max: right.min - 1, pattern: undefined });
    const longer = nodes.make({ kind: "string", min: right.max + 1, max: Infinity, pattern: undefined });
    return algebra.union([
      ...(right.min > 0 ? [algebra.intersect(left, shorter)] : []),
      ...(right.max < Infinity ? [algebra.intersect(left, longer)] : []),
    ]);
  }
  if (
    left.kind === "number" &&
    right.kind === "number" &&
    right.multipleOf === undefined &&
    (!right.integer || left.integer)
  ) {
    const outside: NumberNode[] = [];
    const base = { kind: "number", integer: false, multipleOf: undefined } as const;
    if (right.min !== undefined) {
      outside.push({ ...base, min: undefined, max: { value: right.min.value, exclusive: !right.min.exclusive } });
    }
    if (right.max !== undefined) {
      outside.push({ ...base, min: { value: right.max.value, exclusive: !right.max.exclusive }, max: undefined });
    }
    return algebra.union(outside.map((part) => algebra.intersect(left, nodes.make(part))));
  }
  if (left.kind === "object" && right.kind === "object") return subtractObjects(algebra, left, right);
  throw unsupported(algebra.path, "What `not`, `oneOf` or `if` excludes here cannot be expressed in a grammar.");
}

function subtractObjects(algebra: Algebra, a: Node & ObjectNode, b: ObjectNode): Node {
  const { nodes } = algebra;
  const empty = {
    kind: "object",
    patterns: [],
    additional: nodes.any,
    implicit: true,
    names: nodes.any,
    min: 0,
    max: Infinity,
  } as const;
  const outside: Node[] = [];
  let whole = b.additional.kind === "any" && b.patterns.length === 0 && b.names.kind === "any";
  for (const { name, value, required } of b.properties) {
    if (required) {
      const without = nodes.make({ ...empty, properties: [{ name, value: nodes.never, required: false }] });
      outside.push(algebra.intersect(a, without));
    }
    if (value.kind === "any") continue;
    try {
      const other = subtract(algebra, algebra.valueOf(a, name), value);
      outside.push(
        algebra.intersect(a, nodes.make({ ...empty, properties: [{ name, value: other, required: true }] })),
      );
    } catch (error) {
      // This way of differing cannot be said; another may.
      whole = false;
      if (!(error instanceof Error) || error.name !== "Refusal") throw error;
    }
  }
  if (b.min > b.properties.filter((property) => property.required).length) {
    outside.push(algebra.intersect(a, nodes.make({ ...empty, properties: [], max: b.min - 1 })));
  }
  if (b.max < Infinity) outside.push(algebra.intersect(a, nodes.make({ ...empty, properties: [], min: b.max + 1 })));
  const result = algebra.union(outside);
  if (!whole) algebra.narrowed++;
  if (result.kind === "never" && !whole) {
    throw unsupported(algebra.path, "What `not`, `oneOf` or `if` excludes here cannot be expressed in a grammar.");
  }
  return result;
}
