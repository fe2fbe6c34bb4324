// Deterministic automata over Unicode scalar values: from a Regex, minimal, and their products.
import { LRUCache } from "lru-cache";
import type { Range, Regex } from "../regex/ast.ts";
import type { Fuel } from "./fuel.ts";

export interface CharState {
  /** Triples low, high, target: sorted, disjoint; neighbours with one target are merged. */
  readonly edges: readonly number[];
  readonly accepting: boolean;
}

/** State 0 is the start. Every state can reach an accepting one; no state at all = no text. */
export type CharDfa = readonly CharState[];

interface Nfa {
  readonly silent: number[][];
  readonly sets: Array<readonly Range[] | undefined>;
  readonly targets: number[];
}

/**
 * Formats, numbers and popular patterns come again in one schema after the other. What was made once is charged as if it
 * were made again: whether a schema is refused must not depend on those before it.
 */
const known = new LRUCache<string, { readonly dfa: CharDfa; readonly cost: number }>({ max: 1_000 });
const LONGEST_KEY = 20_000;

/** Minimal automaton of the regex's texts. Throws a Refusal when the fuel is used up. */
export function charDfa(regex: Regex, fuel: Fuel): CharDfa {
  const key = JSON.stringify(regex);
  const before = key.length <= LONGEST_KEY ? known.get(key) : undefined;
  if (before !== undefined) {
    fuel.spend(before.cost);
    return before.dfa;
  }
  const start = fuel.remaining;
  const dfa = makeDfa(regex, fuel);
  if (key.length <= LONGEST_KEY) known.set(key, { dfa, cost: start - fuel.remaining });
  return dfa;
}

function makeDfa(regex: Regex, fuel: Fuel): CharDfa {
  const nfa: Nfa = { silent: [], sets: [], targets: [] };
  const end = addState(nfa, fuel);
  const start = addRegex(nfa, regex, end, fuel);
  return minimal(determinize(nfa, start, end, fuel), fuel);
}

function addState(nfa: Nfa, fuel: Fuel): number {
  fuel.spend(1);
  nfa.silent.push([]);
  nfa.sets.push(undefined);
  nfa.targets.push(-1);
  return nfa.silent.length - 1;
}

/** States for the regex that lead to `next`; returns the first. */
function addRegex(nfa: Nfa, regex: Regex, next: number, fuel: Fuel): number {
  switch (regex.kind) {
    case "set": {
      const state = addState(nfa, fuel);
      nfa.sets[state] = regex.ranges;
      nfa.targets[state] = next;
      return state;
    }
    case "sequence":
      return regex.parts.reduceRight((after, part) => addRegex(nfa, part, after, fuel), next);
    case "choice": {
      const state = addState(nfa, fuel);
      for (const option of regex.options) nfa.silent[state]?.push(addRegex(nfa, option, next, fuel));
      return state;
    }
    case "repeat": {
      let after = next;
      if (regex.max === Infinity) {
        const loop = addState(nfa, fuel);
        nfa.silent[loop]?.push(addRegex(nfa, regex.of, loop, fuel), next);
        after = loop;
      } else {
        for (let i = regex.max - regex.min; i > 0; i--) {
          const optional = addState(nfa, fuel);
          nfa.silent[optional]?.push(addRegex(nfa, regex.of, after, fuel), next);
          after = optional;
        }
      }
      for (let i = regex.min; i > 0; i--) after = addRegex(nfa, regex.of, after, fuel);
      return after;
    }
  }
}

function determinize(nfa: Nfa, start: number, end: number, fuel: Fuel): CharState[] {
  const mark = new Int32Array(nfa.silent.length).fill(-1);
  let round = 0;
  /** States with sets (and the end) that are reached silently, sorted. */
  const close = (from: readonly number[]): number[] => {
    round++;
    const found: number[] = [];
    const waiting = [...from];
    for (let state = waiting.pop(); state !== undefined; state = waiting.pop()) {
      if (mark[state] === round) continue;
      mark[state] = round;
      fuel.spend(1);
      if (state === end || nfa.sets[state] !== undefined) found.push(state);
      for (const next of nfa.silent[state] ?? []) waiting.push(next);
    }
    return found.sort((a, b) => a - b);
  };
  const ids = new Map<string, number>();
  const members: number[][] = [];
  const idOf = (from: readonly number[]): number => {
    const closed = close(from);
    const key = closed.join();
    const known = ids.get(key);
    if (known !== undefined) return known;
    ids.set(key, members.length);
    members.push(closed);
    return members.length - 1;
  };
  idOf([start]);
  const states: CharState[] = [];
  for (let id = 0; id < members.length; id++) {
    const here = members[id] ?? [];
    const moves: number[] = [];
    for (const state of here) {
      for (const [low, high] of nfa.sets[state] ?? []) moves.push(low, high, nfa.targets[state] ?? 0);
    }
    states.push({ edges: split(moves, idOf, fuel), accepting: here.includes(end) });
  }
  return states;
}

/** Overlapping triples low, high, target to disjoint ones, each with the state for all its targets. */
function split(moves: readonly number[], idOf: (targets: readonly number[]) => number, fuel: Fuel): number[] {
  if (moves.length === 3) return [moves[0] ?? 0, moves[1] ?? 0, idOf([moves[2] ?? 0])];
  const cuts = new Set<number>();
  for (let i = 0; i < moves.length; i += 3) cuts.add(moves[i] ?? 0).add((moves[i + 1] ?? 0) + 1);
  const bounds = [...cuts].sort((a, b) => a - b);
  const place = new Map(bounds.map((bound, i) => [bound, i]));
  const targets: number[][] = bounds.map(() => []);
  for (let i = 0; i < moves.length; i += 3) {
    const from = place.get(moves[i] ?? 0) ?? 0;
    const to = place.get((moves[i + 1] ?? 0) + 1) ?? 0;
    fuel.spend(to - from);
    for (let at = from; at < to; at++) targets[at]?.push(moves[i + 2] ?? 0);
  }
  const edges: number[] = [];
  for (let at = 0; at + 1 < bounds.length; at++) {
    const list = targets[at] ?? [];
    if (list.length > 0) pushEdge(edges, bounds[at] ?? 0, (bounds[at + 1] ?? 0) - 1, idOf(list));
  }
  return edges;
}

/** Appends an edge, or widens the last one. */
export function pushEdge(edges: number[], low: number, high: number, target: number): void {
  const last = edges.length - 3;
  if (last >= 0 && edges[last + 2] === target && (edges[last + 1] ?? 0) + 1 === low) edges[last + 1] = high;
  else edges.push(low, high, target);
}

/** Without states that lead nowhere, and with equal ones merged (Moore's refinement). */
export function minimal(states: readonly CharState[], fuel: Fuel): CharDfa {
  const alive = useful(states, fuel);
  if (alive[0] !== 1) return [];
  let classes = new Int32Array(states.length);
  let count = 0;
  for (const [i, state] of states.entries()) classes[i] = alive[i] === 1 ? (state.accepting ? 1 : 0) : -1;
  for (let before = -1; before !== count; ) {
    before = count;
    const ids = new Map<string, number>();
    const next = new Int32Array(states.length).fill(-1);
    for (const [i, state] of states.entries()) {
      if (alive[i] !== 1) continue;
      fuel.spend(1 + state.edges.length / 3);
      let key = `${classes[i]}`;
      const edges = mappedEdges(state.edges, classes);
      if (edges.length > 0) key += `,${edges.join()}`;
      let id = ids.get(key);
      if (id === undefined) {
        id = ids.size;
        ids.set(key, id);
      }
      next[i] = id;
    }
    classes = next;
    count = ids.size;
  }
  // Ids were given in the order of the states, so the start is class 0.
  const result: CharState[] = [];
  for (const [i, state] of states.entries()) {
    const id = classes[i] ?? -1;
    if (id === result.length) result.push({ edges: mappedEdges(state.edges, classes), accepting: state.accepting });
  }
  return result;
}

function mappedEdges(edges: readonly number[], classes: Int32Array): number[] {
  const mapped: number[] = [];
  for (let i = 0; i < edges.length; i += 3) {
    const target = classes[edges[i + 2] ?? 0] ?? -1;
    if (target >= 0) pushEdge(mapped, edges[i] ?? 0, edges[i + 1] ?? 0, target);
  }
  return mapped;
}

/** 1 for each state from which an accepting one can be reached. */
function useful(states: readonly CharState[], fuel: Fuel): Uint8Array {
  const before: number[][] = states.map(() => []);
  for (const [i, { edges }] of states.entries()) {
    fuel.spend(edges.length / 3);
    for (let at = 2; at < edges.length; at += 3) before[edges[at] ?? 0]?.push(i);
  }
  const alive = new Uint8Array(states.length);
  const waiting = states.flatMap((state, i) => (state.accepting ? [i] : []));
  for (let state = waiting.pop(); state !== undefined; state = waiting.pop()) {
    if (alive[state] === 1) continue;
    alive[state] = 1;
    waiting.push(...(before[state] ?? []));
  }
  return alive;
}

/** What runs several automata at once may ask of them: -1 is the state without any text left. */
export interface ProductState {
  readonly parts: readonly number[];
  /** Triples low, high, target over product states. */
  readonly edges: number[];
}

/**
 * The automata side by side, each either in a state or (-1) out of its language. `keep` says whether a combination is worth
 * following. The first state is the start.
 */
export function product(
  automata: readonly CharDfa[],
  keep: (parts: readonly number[]) => boolean,
  fuel: Fuel,
): ProductState[] {
  const ids = new Map<string, number>();
  const states: ProductState[] = [];
  const idOf = (parts: readonly number[]): number => {
    const key = parts.join();
    let id = ids.get(key);
    if (id === undefined) {
      id = states.length;
      ids.set(key, id);
      states.push({ parts, edges: [] });
    }
    return id;
  };
  idOf(automata.map((dfa) => (dfa.length > 0 ? 0 : -1)));
  for (let id = 0; id < states.length; id++) {
    const { parts, edges } = states[id] ?? { parts: [], edges: [] };
    const lists = parts.map((part, i) => automata[i]?.[part]?.edges ?? []);
    const cuts = new Set<number>([0, 0x110000]);
    for (const list of lists)
      for (let i = 0; i < list.length; i += 3) cuts.add(list[i] ?? 0).add((list[i + 1] ?? 0) + 1);
    const bounds = [...cuts].sort((a, b) => a - b);
    const at = lists.map(() => 0);
    for (let i = 0; i + 1 < bounds.length; i++) {
      const low = bounds[i] ?? 0;
      fuel.spend(lists.length);
      const next = lists.map((list, j) => {
        let place = at[j] ?? 0;
        while (place < list.length && (list[place + 1] ?? 0) < low) place += 3;
        at[j] = place;
        return place < list.length && (list[place] ?? 0) <= low ? (list[place + 2] ?? -1) : -1;
      });
      if (keep(next)) pushEdge(edges, low, (bounds[i + 1] ?? 0) - 1, idOf(next));
    }
  }
  return states;
}

/** Texts that all automata accept. */
export function intersection(automata: readonly CharDfa[], fuel: Fuel): CharDfa {
  const states = product(automata, (parts) => parts.every((part) => part >= 0), fuel);
  const first = states[0];
  if (first === undefined || first.parts.includes(-1)) return [];
  return minimal(
    states.map(({ parts, edges }) => ({
      edges,
      accepting: parts.every((part, i) => automata[i]?.[part]?.accepting === true),
    })),
    fuel,
  );
}
