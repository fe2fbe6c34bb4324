// Takes out what no finite value can satisfy (an unending recursion, a part that contradicts itself), so that a grammar
// never leads into a dead end: an empty mask has no token to sample.
import { unsupported } from "../refusal.ts";
import type { Algebra } from "./algebra.ts";
import type { Node } from "./node.ts";

/** The nodes reachable from `root`, children before nothing in particular; references are followed. */
function reachable(root: Node, algebra: Algebra): Map<number, Node> {
  const found = new Map<number, Node>();
  const waiting = [root];
  for (let node = waiting.pop(); node !== undefined; node = waiting.pop()) {
    if (found.has(node.id)) continue;
    found.set(node.id, node);
    waiting.push(...childrenOf(node, algebra));
  }
  return found;
}

function childrenOf(node: Node, algebra: Algebra): readonly Node[] {
  switch (node.kind) {
    case "union":
      return node.options;
    case "ref":
      return [algebra.definition(node.name)];
    case "array":
      return [...node.prefix, node.items];
    case "object":
      return [...node.properties.map((p) => p.value), ...node.patterns.map((p) => p.value), node.additional];
    default:
      return [];
  }
}

/** Returns the root with every unsatisfiable alternative, optional property and item gone; `never` when nothing is left. */
export function prune(root: Node, algebra: Algebra): Node {
  const { nodes } = algebra;
  const all = reachable(root, algebra);
  refuseLeftRecursion(all, algebra);
  const alive = new Set<number>();
  const isAlive = (node: Node): boolean => {
    switch (node.kind) {
      case "never":
        return false;
      case "union":
        return node.options.some((option) => alive.has(option.id));
      case "ref":
        return alive.has(algebra.definition(node.name).id);
      case "array":
        return Array.from({ length: node.min }, (_, i) => node.prefix[i] ?? node.items)
          .slice(0, node.prefix.length + 1)
          .every((item) => alive.has(item.id));
      case "object":
        return node.properties.every((property) => !property.required || alive.has(property.value.id));
      default:
        return true;
    }
  };
  for (let grew = true; grew; ) {
    grew = false;
    for (const [id, node] of all) {
      if (!alive.has(id) && isAlive(node)) {
        alive.add(id);
        grew = true;
      }
    }
  }
  const done = new Map<number, Node>();
  const renamed = new Set<string>();
  const rebuild = (node: Node): Node => {
    if (!alive.has(node.id)) return nodes.never;
    const known = done.get(node.id);
    if (known !== undefined) return known;
    const result = rebuildAlive(node);
    done.set(node.id, result);
    return result;
  };
  const rebuildAlive = (node: Node): Node => {
    switch (node.kind) {
      case "union":
        return nodes.union(node.options.map(rebuild));
      case "ref": {
        const name = `!${node.name}`;
        const reference = nodes.make({ kind: "ref", name });
        if (!renamed.has(name)) {
          renamed.add(name);
          algebra.define(name, rebuild(algebra.definition(node.name)));
        }
        return reference;
      }
      case "array":
        return nodes.make({ ...node, prefix: node.prefix.map(rebuild), items: rebuild(node.items) });
      case "object": {
        const patterns = node.patterns.map((pattern) => ({ ...pattern, value: rebuild(pattern.value) }));
        const properties = node.properties.map((property) => ({ ...property, value: rebuild(property.value) }));
        return nodes.make({ ...node, properties, patterns, additional: rebuild(node.additional) });
      }
      default:
        return node;
    }
  };
  return rebuild(root);
}

/** A schema that is its own alternative means nothing (validators loop on it). */
function refuseLeftRecursion(all: ReadonlyMap<number, Node>, algebra: Algebra): void {
  const state = new Map<number, "open" | "done">();
  const visit = (node: Node): void => {
    const known = state.get(node.id);
    if (known === "done") return;
    if (known === "open")
      throw unsupported(algebra.path, "A $ref leads back to itself without any value in between: it has no meaning.");
    state.set(node.id, "open");
    if (node.kind === "ref" || node.kind === "union") for (const child of childrenOf(node, algebra)) visit(child);
    state.set(node.id, "done");
  };
  for (const node of all.values()) visit(node);
}
