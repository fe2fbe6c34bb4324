// Objects that differ in one property only are one object: fewer alternatives to follow side by side. Exact.
import type { Algebra } from "./algebra.ts";
import type { Node, ObjectNode, Property } from "./node.ts";

/** More are left as they are: each pair is looked at. */
const MAX_MERGED = 64;

/** The same alternatives with such objects merged, until none are left. */
export function mergeObjects(algebra: Algebra, options: readonly Node[]): readonly Node[] {
  const objects = options.flatMap((option) => (option.kind === "object" ? [option] : []));
  if (objects.length < 2 || objects.length > MAX_MERGED) return options;
  const merged: Array<Node & ObjectNode> = [];
  for (const object of objects) {
    let current = object;
    for (let at = 0; at < merged.length; ) {
      const other = merged[at];
      const both = other === undefined ? undefined : mergedPair(algebra, other, current);
      if (both === undefined) at++;
      else {
        // What came of the two may go together with one that neither did.
        merged.splice(at, 1);
        current = both;
        at = 0;
      }
    }
    merged.push(current);
  }
  return merged.length === objects.length
    ? options
    : [...options.filter((option) => option.kind !== "object"), ...merged];
}

function mergedPair(algebra: Algebra, a: ObjectNode, b: ObjectNode): (Node & ObjectNode) | undefined {
  if (a.additional !== b.additional || a.names !== b.names || a.max !== b.max || a.implicit !== b.implicit) {
    return undefined;
  }
  if (ownMinimum(a) !== ownMinimum(b)) return undefined;
  const patterns =
    a.patterns.map(({ source }) => source).join("\n") === b.patterns.map(({ source }) => source).join("\n");
  if (!patterns || a.patterns.some(({ value }, i) => value !== b.patterns[i]?.value)) return undefined;
  const names = new Set([...a.properties, ...b.properties].map(({ name }) => name));
  let difference: Property | undefined;
  const properties: Property[] = [];
  for (const name of names) {
    const left = propertyOf(algebra, a, name);
    const right = propertyOf(algebra, b, name);
    if (left.value === right.value && left.required === right.required) {
      properties.push(left);
      continue;
    }
    if (difference !== undefined) return undefined;
    difference = {
      name,
      value: algebra.union([left.value, right.value]),
      required: left.required && right.required,
    };
    properties.push(difference);
  }
  const node = algebra.nodes.make({ ...a, properties, min: ownMinimum(a) });
  return node.kind === "object" ? node : undefined;
}

/** The minimum where it says more than that the required members are there. */
function ownMinimum({ min, properties }: ObjectNode): number {
  return min > properties.filter(({ required }) => required).length ? min : 0;
}

function propertyOf(algebra: Algebra, node: ObjectNode, name: string): Property {
  const known = node.properties.find((property) => property.name === name);
  return known ?? { name, value: algebra.valueOf(node, name), required: false };
}
