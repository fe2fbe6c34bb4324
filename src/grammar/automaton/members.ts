// The states that read a member of a set: an object's key up to its closing quote, or an item that must differ from the rest.
import type { Builder } from "./builder.ts";
import { byteEdges, type Guard } from "./bytes.ts";
import { pushEdge } from "./chars.ts";
import { Op } from "./format.ts";
import { withQuote } from "./text.ts";

/** Keys that the schema does not list: an automaton over their characters; -1 is the state without any key left. */
export interface OtherKeys {
  readonly start: number;
  /** Triples low, high, target of a state. */
  readonly edges: (state: number) => readonly number[];
  /** What follows the closing quote when the key ends in this state; undefined where it may not end. */
  readonly accept: (state: number) => number | undefined;
}

interface Entry {
  /** As it stands in the text: a key with its escapes and closing quote, or an item. */
  readonly bytes: Uint8Array;
  readonly take: number;
}

/**
 * Listed members alone, sorted by their text; `takes[k]` follows the text of member k. Where texts part, a guard looks
 * whether a member of the branch may still come, so that no branch is entered that cannot be finished.
 */
export function listedMembers(
  builder: Builder,
  set: number,
  texts: readonly string[],
  takes: readonly number[],
): number {
  const encoder = new TextEncoder();
  const entries = texts.map((text, k): Entry => ({ bytes: encoder.encode(text), take: takes[k] ?? 0 }));
  // From [low, high) the texts agree in their first `depth` bytes.
  const from = (low: number, high: number, depth: number): number => {
    builder.fuel.spend(1);
    const edges: number[] = [];
    let ended: number | undefined;
    for (let at = low; at < high; ) {
      const entry = entries[at];
      const byte = entry?.bytes[depth];
      if (byte === undefined) {
        ended = entry?.take;
        at++;
        continue;
      }
      let to = at + 1;
      while (to < high && entries[to]?.bytes[depth] === byte) to++;
      const next = from(at, to, depth + 1);
      const alone = at === low && to === high;
      edges.push(byte, byte, alone ? next : builder.guard(set, at, to, 0, next));
      at = to;
    }
    return ended === undefined ? builder.state(Op.none, [], edges) : builder.state(Op.jump, [ended], edges);
  };
  return from(0, entries.length, 0);
}

/** Order of the texts' UTF-8 bytes. */
export function byBytes(a: string, b: string): number {
  const [x, y] = [Array.from(a), Array.from(b)];
  const length = Math.min(x.length, y.length);
  for (let i = 0; i < length; i++) {
    const difference = (x[i]?.codePointAt(0) ?? 0) - (y[i]?.codePointAt(0) ?? 0);
    if (difference !== 0) return difference;
  }
  return x.length - y.length;
}

interface Trie {
  low: number;
  high: number;
  member: number | undefined;
  readonly children: Map<number, Trie>;
}

interface Place {
  readonly trie: Trie | undefined;
  readonly other: number;
  /** Triples low, high, place. */
  edges: number[];
  /** Another key can still come of this one. */
  leads: boolean;
}

/**
 * Listed keys and others side by side, behind the opening quote. A listed name never comes as another key: as long as a key
 * may still become a listed one, each of its characters has one spelling.
 */
export function openKeys(
  builder: Builder,
  set: number,
  names: readonly string[],
  takes: readonly number[],
  others: OtherKeys,
): number {
  const root = trieOf(names);
  const places: Place[] = [];
  const numbers = new Map<Trie | undefined, Map<number, number>>();
  const placeOf = (trie: Trie | undefined, other: number): number => {
    let known = numbers.get(trie);
    if (known === undefined) {
      known = new Map();
      numbers.set(trie, known);
    }
    let number = known.get(other);
    if (number === undefined) {
      builder.fuel.spend(1);
      number = places.length;
      known.set(other, number);
      places.push({ trie, other, edges: [], leads: false });
    }
    return number;
  };
  placeOf(root, others.start);
  for (let i = 0; i < places.length; i++) {
    const place = places[i];
    if (place !== undefined) place.edges = placeEdges(place, others, placeOf);
  }
  markLeading(places, others);
  const spec = builder.sets[set];
  // Patterns may match nothing but names that are listed.
  if (spec !== undefined && places[0]?.leads !== true) builder.sets[set] = { ...spec, others: false };
  return keyStates(builder, set, places, takes, others);
}

function trieOf(names: readonly string[]): Trie {
  const root: Trie = { low: 0, high: names.length, member: undefined, children: new Map() };
  for (const [k, name] of names.entries()) {
    let at = root;
    for (const character of name) {
      const code = character.codePointAt(0) ?? 0;
      let child = at.children.get(code);
      if (child === undefined) {
        child = { low: k, high: k + 1, member: undefined, children: new Map() };
        at.children.set(code, child);
      }
      child.high = k + 1;
      at = child;
    }
    at.member = k;
  }
  return root;
}

function placeEdges(
  { trie, other }: Place,
  others: OtherKeys,
  placeOf: (trie: Trie | undefined, other: number) => number,
): number[] {
  const listed = [...(trie?.children ?? [])].sort(([a], [b]) => a - b);
  const free = other < 0 ? [] : others.edges(other);
  const edges: number[] = [];
  let at = 0;
  // The free edges of [from, limit).
  const freeUpTo = (limit: number, from: number) => {
    for (; at < free.length && (free[at] ?? 0) < limit; at += 3) {
      const start = Math.max(from, free[at] ?? 0);
      const end = Math.min(limit - 1, free[at + 1] ?? 0);
      if (start <= end) pushEdge(edges, start, end, placeOf(undefined, free[at + 2] ?? 0));
      if ((free[at + 1] ?? 0) >= limit) return;
    }
  };
  let next = 0;
  for (const [code, child] of listed) {
    freeUpTo(code, next);
    const target =
      free.length > at && (free[at] ?? 0) <= code && code <= (free[at + 1] ?? 0) ? (free[at + 2] ?? -1) : -1;
    edges.push(code, code, placeOf(child, target));
    next = code + 1;
  }
  freeUpTo(0x110000, next);
  return edges;
}

function markLeading(places: readonly Place[], others: OtherKeys): void {
  const before: number[][] = places.map(() => []);
  for (const [i, { edges }] of places.entries())
    for (let at = 2; at < edges.length; at += 3) before[edges[at] ?? 0]?.push(i);
  const waiting = places.flatMap(({ trie, other }, i) =>
    trie?.member === undefined && other >= 0 && others.accept(other) !== undefined ? [i] : [],
  );
  for (let i = waiting.pop(); i !== undefined; i = waiting.pop()) {
    const place = places[i];
    if (place === undefined || place.leads) continue;
    place.leads = true;
    waiting.push(...(before[i] ?? []));
  }
}

function keyStates(
  builder: Builder,
  set: number,
  places: readonly Place[],
  takes: readonly number[],
  others: OtherKeys,
): number {
  const ids = places.map(() => builder.reserve());
  const placeAt = new Map(ids.map((id, i) => [id, i]));
  for (const [i, place] of places.entries()) {
    const { trie, other, edges } = place;
    // A character is begun only if one that begins like it may come.
    const guard: Guard = (state, targets, above) => {
      const [only] = targets;
      if (targets.length === 1 && only !== undefined) {
        const next = places[placeAt.get(only) ?? -1];
        if (next === undefined || mayComeAlike(next, place)) return state;
      }
      const distinct = new Set(targets);
      const reached = [...distinct].flatMap((target) => places[placeAt.get(target) ?? -1] ?? []);
      if (reached.some((next) => mayComeAlike(next, place))) return state;
      if (above !== undefined && new Set(above).size === distinct.size) return state;
      return builder.any(rangesOf(reached).map(({ low, high, leads }) => builder.guard(set, low, high, leads, state)));
    };
    const targets = edges.map((value, at) => (at % 3 === 2 ? (ids[value] ?? 0) : value));
    const end = trie?.member !== undefined ? takes[trie.member] : other >= 0 ? others.accept(other) : undefined;
    const bytes = byteEdges(builder, targets, "json", guard);
    builder.fill(ids[i] ?? 0, Op.none, [], end === undefined ? bytes : withQuote(bytes, end));
  }
  return ids[0] ?? 0;
}

/** Whoever came to the one may go to the other without another look. */
function mayComeAlike(a: Place, b: Place): boolean {
  return a.leads === b.leads && (a.trie?.low ?? 0) === (b.trie?.low ?? 0) && a.trie?.high === b.trie?.high;
}

/** What may come at any of the places, in as few ranges of members as say it. */
function rangesOf(places: readonly Place[]): Array<{ low: number; high: number; leads: number }> {
  const leads = places.some((place) => place.leads) ? 1 : 0;
  const ranges: Array<{ low: number; high: number; leads: number }> = [];
  const listed = places.flatMap(({ trie }) => trie ?? []).sort((a, b) => a.low - b.low);
  for (const { low, high } of listed) {
    const last = ranges.at(-1);
    if (last !== undefined && last.high === low) last.high = high;
    else ranges.push({ low, high, leads });
  }
  return ranges.length > 0 ? ranges : [{ low: 0, high: 0, leads }];
}
