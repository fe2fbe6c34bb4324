// A regex to states. Long counted repetition becomes a counter on the stack, everything else one deterministic automaton.
import { tooComplex } from "../refusal.ts";
import { ANY_CHARACTER, lengths, type Regex, repeat, sequence, stateEstimate } from "../regex/ast.ts";
import type { StringNode } from "../schema/node.ts";
import type { Builder } from "./builder.ts";
import { byteEdges, type Spelling } from "./bytes.ts";
import { type CharDfa, charDfa, intersection } from "./chars.ts";
import { MAX_COUNT, Op } from "./format.ts";
import type { Fuel } from "./fuel.ts";

/** What follows: a closing quote and then `target`, or `target` itself. */
export interface Ending {
  readonly quote: boolean;
  readonly target: number;
}

/**
 * Repetition of more than so many states is counted, not written out. Of a few characters more is written out: masks of
 * a state that only takes bytes are several times cheaper than those of a counter, while any text has slices either way.
 */
const LONG = 24;
const LONG_OF_ASCII = 128;

/** The first of the states that match `regex` and go on as `ending` says. */
export function textStates(builder: Builder, regex: Regex, spelling: Spelling, ending: Ending): number {
  if (!countsFar(regex)) return dfaStates(builder, charDfa(regex, builder.fuel), spelling, ending);
  builder.fuel.spend(1);
  switch (regex.kind) {
    case "set":
      return dfaStates(builder, charDfa(regex, builder.fuel), spelling, ending);
    case "sequence": {
      let next = ending;
      for (const group of groups(regex.parts).toReversed()) {
        next = { quote: false, target: textStates(builder, group, spelling, next) };
      }
      return next.target;
    }
    case "choice":
      return builder.any(regex.options.map((option) => textStates(builder, option, spelling, ending)));
    case "repeat":
      return repeated(builder, regex.of, regex.min, regex.max, spelling, ending);
  }
}

/** Neighbours that need no counter together. */
function groups(parts: readonly Regex[]): Regex[] {
  const result: Regex[] = [];
  let plain: Regex[] = [];
  for (const part of parts) {
    if (!countsFar(part)) {
      plain.push(part);
      continue;
    }
    if (plain.length > 0) result.push(sequence(plain));
    plain = [];
    result.push(part);
  }
  if (plain.length > 0) result.push(sequence(plain));
  return result;
}

function countsFar(regex: Regex): boolean {
  switch (regex.kind) {
    case "set":
      return false;
    case "sequence":
      return regex.parts.some(countsFar);
    case "choice":
      return regex.options.some(countsFar);
    case "repeat":
      return (
        countsFar(regex.of) ||
        ((regex.max !== Infinity || regex.min > 1) &&
          stateEstimate(regex) > (onlyAscii(regex.of) ? LONG_OF_ASCII : LONG))
      );
  }
}

function onlyAscii(regex: Regex): boolean {
  switch (regex.kind) {
    case "set":
      return regex.ranges.every(([, high]) => high < 0x80);
    case "sequence":
      return regex.parts.every(onlyAscii);
    case "choice":
      return regex.options.every(onlyAscii);
    case "repeat":
      return onlyAscii(regex.of);
  }
}

function repeated(builder: Builder, of: Regex, min: number, max: number, spelling: Spelling, ending: Ending): number {
  if (min > MAX_COUNT || (max !== Infinity && max > MAX_COUNT))
    throw tooComplex("", `A count above ${MAX_COUNT} is not supported.`);
  const exit = ending.quote ? builder.bytes(0x22, 0x22, ending.target) : ending.target;
  const head = builder.reserve();
  const nullable = lengths(of)[0] === 0;
  if (nullable && countsFar(of)) throw tooComplex("", "The pattern counts inside a repetition that may be empty.");
  const again = { quote: false, target: head };
  const body = nullable
    ? dfaStates(builder, withoutEmpty(charDfa(of, builder.fuel)), spelling, again)
    : textStates(builder, of, spelling, again);
  const least = nullable ? 0 : min;
  if (least === 0 && max === Infinity) {
    builder.fill(head, Op.split, [body, exit], []);
    return head;
  }
  builder.fill(head, Op.count, [least, max, body, exit], []);
  return builder.op(Op.push, head);
}

/** Above this the states of pattern and length together are too many. */
const MAX_CUT_LENGTH = 1_024;

/** Texts of the pattern that have one of the node's lengths. Throws Refusal where the lengths are too large to be written out. */
export function cutDfa({ min, max }: StringNode, regex: Regex, path: string, fuel: Fuel): CharDfa {
  if (min > MAX_CUT_LENGTH || (max !== Infinity && max > MAX_CUT_LENGTH))
    throw tooComplex(
      `${path}/pattern`,
      `A length limit above ${MAX_CUT_LENGTH} beside a pattern of this shape is not supported.`,
    );
  return intersection([charDfa(regex, fuel), charDfa(repeat(ANY_CHARACTER, min, max), fuel)], fuel);
}

/** The same texts but the empty one. */
function withoutEmpty(dfa: CharDfa): CharDfa {
  const [start] = dfa;
  if (start === undefined || !start.accepting) return dfa;
  const shifted = (edges: readonly number[]) => edges.map((value, i) => (i % 3 === 2 ? value + 1 : value));
  return [
    { edges: shifted(start.edges), accepting: false },
    ...dfa.map(({ edges, accepting }) => ({ edges: shifted(edges), accepting })),
  ];
}

/** States of an automaton over characters; a dead state where it has none. */
export function dfaStates(builder: Builder, dfa: CharDfa, spelling: Spelling, ending: Ending): number {
  if (dfa.length === 0) return builder.reserve();
  const ids = dfa.map(() => builder.reserve());
  for (const [i, { edges, accepting }] of dfa.entries()) {
    const targets = edges.map((value, at) => (at % 3 === 2 ? (ids[value] ?? 0) : value));
    const bytes = byteEdges(builder, targets, spelling);
    const id = ids[i] ?? 0;
    if (!accepting) builder.fill(id, Op.none, [], bytes);
    else if (ending.quote) builder.fill(id, Op.none, [], withQuote(bytes, ending.target));
    else if (ending.target === builder.back) builder.fill(id, Op.return, [], bytes);
    else builder.fill(id, Op.jump, [ending.target], bytes);
  }
  return ids[0] ?? 0;
}

/** Inside a JSON string no character begins with the closing quote, so it has a place among the edges. */
export function withQuote(edges: readonly number[], target: number): number[] {
  let place = 0;
  while (place < edges.length && (edges[place] ?? 0) < 0x22) place += 3;
  return [...edges.slice(0, place), 0x22, 0x22, target, ...edges.slice(place)];
}
