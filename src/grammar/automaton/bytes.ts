// Edges over characters to edges over bytes: UTF-8, and, inside a JSON string, its escapes.
import type { Builder } from "./builder.ts";
import { pushEdge } from "./chars.ts";

/** `json`: the inside of a JSON string. A character that must be escaped has its shortest spelling, any other is raw; where every
 *  character leads to one state, every spelling that RFC 8259 has does. */
export type Spelling = "plain" | "json";

const MAX_CODE_POINT = 0x10ffff;
const SHORT_ESCAPES: ReadonlyMap<number, number> = new Map([
  [0x08, 0x62],
  [0x09, 0x74],
  [0x0a, 0x6e],
  [0x0c, 0x66],
  [0x0d, 0x72],
  [0x22, 0x22],
  [0x5c, 0x5c],
]);

/**
 * Stands before a state that only some of the characters lead to: `targets` of those behind it, `above` of those that its
 * own way was guarded for already (undefined at a character's first byte). Without one, targets are entered as they are.
 */
export type Guard = (state: number, targets: readonly number[], above: readonly number[] | undefined) => number;

const unguarded: Guard = (state) => state;

/** Byte edges (triples, sorted) for character edges; makes the states between. */
export function byteEdges(
  builder: Builder,
  edges: readonly number[],
  spelling: Spelling,
  guard: Guard = unguarded,
): number[] {
  const raw: number[] = [];
  for (let i = 0; i < edges.length; i += 3) {
    const [low = 0, high = 0, target = 0] = [edges[i], edges[i + 1], edges[i + 2]];
    if (low < 0x80) addRaw(raw, low, Math.min(high, 0x7f), guard(target, [target], undefined), spelling);
  }
  if (spelling === "json") addEscapes(builder, raw, edges, guard);
  const only = soleTarget(edges, 0x80);
  if (only !== undefined) {
    const leads = builder.shared(`non-ascii ${only}`, () =>
      leadEdges(builder, sequencesOf(edges), unguarded, undefined),
    );
    for (let i = 0; i < leads.length; i += 3)
      pushEdge(raw, leads[i] ?? 0, leads[i + 1] ?? 0, guard(leads[i + 2] ?? 0, [only], undefined));
    return raw;
  }
  return [...raw, ...leadEdges(builder, sequencesOf(edges), guard, undefined)];
}

function addRaw(raw: number[], low: number, high: number, target: number, spelling: Spelling): void {
  if (spelling === "plain") {
    pushEdge(raw, low, high, target);
    return;
  }
  let from = Math.max(low, 0x20);
  for (const escaped of [0x22, 0x5c]) {
    if (from > escaped || escaped > high) continue;
    if (from < escaped) pushEdge(raw, from, escaped - 1, target);
    from = escaped + 1;
  }
  if (from <= high) pushEdge(raw, from, high, target);
}

/** What of the edges takes several bytes. */
function sequencesOf(edges: readonly number[]): Sequence[] {
  const sequences: Sequence[] = [];
  for (let i = 0; i < edges.length; i += 3) {
    for (const [first, last, length] of LENGTHS) {
      const from = Math.max(edges[i] ?? 0, first);
      const to = Math.min(edges[i + 1] ?? 0, last);
      if (from <= to) addSequences(sequences, from, to, length, edges[i + 2] ?? 0);
    }
  }
  return sequences;
}

const LENGTHS = [
  [0x80, 0x7ff, 2],
  [0x800, 0xd7ff, 3],
  [0xe000, 0xffff, 3],
  [0x10000, MAX_CODE_POINT, 4],
] as const;

interface Sequence {
  /** Pairs low, high of each byte. */
  readonly bytes: readonly number[];
  readonly target: number;
}

/** UTF-8 of [low, high], all of `length` bytes, as sequences of byte ranges. */
function addSequences(into: Sequence[], low: number, high: number, length: number, target: number): void {
  for (let i = 1; i < length; i++) {
    const unit = 1 << (6 * i);
    // Cut where a part of the low bits is not full, so that each piece is a plain product of ranges.
    if (Math.floor(low / unit) === Math.floor(high / unit)) continue;
    if (low % unit !== 0) {
      const middle = (Math.floor(low / unit) + 1) * unit;
      addSequences(into, low, middle - 1, length, target);
      addSequences(into, middle, high, length, target);
      return;
    }
    if ((high + 1) % unit !== 0) {
      const middle = Math.floor(high / unit) * unit;
      addSequences(into, low, middle - 1, length, target);
      addSequences(into, middle, high, length, target);
      return;
    }
  }
  const a = utf8(low, length);
  const b = utf8(high, length);
  into.push({ bytes: a.flatMap((byte, i) => [byte, b[i] ?? byte]), target });
}

function utf8(code: number, length: number): number[] {
  const lead = [0, 0, 0xc0, 0xe0, 0xf0][length] ?? 0;
  return Array.from({ length }, (_, i) => {
    const shift = 6 * (length - 1 - i);
    return i === 0 ? lead | (code >> shift) : 0x80 | ((code >> shift) & 0x3f);
  });
}

/** Edges for the first byte of the sequences; the rest becomes states. */
function leadEdges(
  builder: Builder,
  sequences: readonly Sequence[],
  guard: Guard,
  above: readonly number[] | undefined,
): number[] {
  if (sequences.length === 0) return [];
  const cuts = new Set<number>();
  for (const { bytes } of sequences) cuts.add(bytes[0] ?? 0).add((bytes[1] ?? 0) + 1);
  const bounds = [...cuts].sort((a, b) => a - b);
  const edges: number[] = [];
  for (const [i, low] of bounds.entries()) {
    const next = bounds[i + 1];
    if (next === undefined) break;
    const here = sequences.filter(({ bytes }) => (bytes[0] ?? 0) <= low && low <= (bytes[1] ?? 0));
    builder.fuel.spend(sequences.length);
    const [first] = here;
    if (first === undefined) continue;
    const targets = here.map(({ target }) => target);
    const rest = here.map(({ bytes, target }) => ({ bytes: bytes.slice(2), target }));
    const state = first.bytes.length === 2 ? first.target : builder.bytes(...leadEdges(builder, rest, guard, targets));
    const target = guard(state, targets, above);
    pushEdge(edges, low, next - 1, target);
  }
  return edges;
}

/** Adds the edge of the backslash at its place. */
function addEscapes(builder: Builder, raw: number[], edges: readonly number[], guard: Guard): void {
  const target = soleTarget(edges, 0);
  const same = target === undefined ? soleEscaped(edges) : undefined;
  let start: number | undefined;
  if (target !== undefined) {
    const [state = 0] = builder.shared(`every escape ${target}`, () => [everyEscape(builder, target)]);
    start = guard(state, [target], undefined);
  } else if (same !== undefined) {
    const [state = 0] = builder.shared(`escapes ${same}`, () => [neededEscapes(builder, edges, unguarded) ?? 0]);
    start = guard(state, [same], undefined);
  } else start = neededEscapes(builder, edges, guard);
  if (start === undefined) return;
  let place = 0;
  while (place < raw.length && (raw[place] ?? 0) < 0x5c) place += 3;
  raw.splice(place, 0, 0x5c, 0x5c, start);
}

/** The one target of every character from `from` on; undefined where there are several or some lead nowhere. */
export function soleTarget(edges: readonly number[], from: number): number | undefined {
  let target: number | undefined;
  let next = from;
  for (let i = 0; i < edges.length; i += 3) {
    if ((edges[i + 1] ?? 0) < from) continue;
    if ((edges[i] ?? 0) > next || (target !== undefined && edges[i + 2] !== target)) return undefined;
    target = edges[i + 2];
    next = (edges[i + 1] ?? 0) + 1;
    // Surrogates are no characters.
    if (next === 0xd800) next = 0xe000;
  }
  return next > MAX_CODE_POINT ? target : undefined;
}

/** The one target of all characters that have no raw spelling; undefined where there are several, or one is missing. */
function soleEscaped(edges: readonly number[]): number | undefined {
  let target: number | undefined;
  let controls = 0;
  let others = 0;
  for (let i = 0; i < edges.length && (edges[i] ?? 0) <= 0x5c; i += 3) {
    const [low = 0, high = 0] = [edges[i], edges[i + 1]];
    const here = [0x22, 0x5c].filter((code) => low <= code && code <= high).length;
    const control = low <= 0x1f ? Math.min(high, 0x1f) - low + 1 : 0;
    if (here + control === 0) continue;
    if (target !== undefined && edges[i + 2] !== target) return undefined;
    target = edges[i + 2];
    others += here;
    controls += control;
  }
  return controls === 0x20 && others === 2 ? target : undefined;
}

/** Escapes of the characters that have no raw spelling. */
function neededEscapes(builder: Builder, edges: readonly number[], guard: Guard): number | undefined {
  const short: number[] = [];
  const control: number[][] = [[], []];
  for (let i = 0; i < edges.length; i += 3) {
    const [low = 0, high = 0, target = 0] = [edges[i], edges[i + 1], edges[i + 2]];
    for (let code = low; code <= Math.min(high, 0x1f); code++) {
      const letter = SHORT_ESCAPES.get(code);
      const digit = code & 15;
      const list = control[code >> 4] ?? [];
      if (letter !== undefined) short.push(letter, letter, target);
      else for (const at of digit < 10 ? [0x30 + digit] : [0x57 + digit, 0x37 + digit]) list.push(at, at, target);
    }
    for (const code of [0x22, 0x5c]) if (low <= code && code <= high) short.push(code, code, target);
  }
  const behindU = targetsOf(control.flat());
  const all = [...targetsOf(short), ...behindU];
  if (all.length === 0) return undefined;
  const guarded = (list: readonly number[], above: readonly number[]) =>
    builder.bytes(...sorted(list.map((value, i) => (i % 3 === 2 ? guard(value, [value], above) : value))));
  const letters = guarded(short, all);
  if (behindU.length === 0) return guard(letters, all, undefined);
  const tens = control.flatMap((list, i) => {
    const behind = targetsOf(list);
    return list.length === 0 ? [] : [0x30 + i, 0x30 + i, guard(guarded(list, behind), behind, behindU)];
  });
  const u = guard(builder.text("00", builder.bytes(...tens)), behindU, all);
  return guard(builder.bytes(...(builder.states[letters]?.edges ?? []), 0x75, 0x75, u), all, undefined);
}

function targetsOf(edges: readonly number[]): number[] {
  return edges.filter((_, i) => i % 3 === 2);
}

/** Triples in the order of their bytes. */
function sorted(edges: readonly number[]): number[] {
  const triples = Array.from({ length: edges.length / 3 }, (_, i) => edges.slice(i * 3, i * 3 + 3));
  triples.sort((a, b) => (a[0] ?? 0) - (b[0] ?? 0));
  const merged: number[] = [];
  for (const [low = 0, high = 0, target = 0] of triples) pushEdge(merged, low, high, target);
  return merged;
}

const HEX = [0x30, 0x39, 0x41, 0x46, 0x61, 0x66];

function hexDigit(builder: Builder, target: number): number {
  return builder.bytes(...hexEdges(target));
}

function hexEdges(target: number): number[] {
  return [0, 2, 4].flatMap((i) => [HEX[i] ?? 0, HEX[i + 1] ?? 0, target]);
}

/** What may follow a backslash where every character leads to `target`: never half of a surrogate pair. */
function everyEscape(builder: Builder, target: number): number {
  const one = hexDigit(builder, target);
  const two = hexDigit(builder, one);
  const three = hexDigit(builder, two);
  const low = builder.text(
    "\\u",
    builder.bytes(0x44, 0x44, surrogate(builder, two), 0x64, 0x64, surrogate(builder, two)),
  );
  const high = hexDigit(builder, hexDigit(builder, low));
  const afterD = builder.bytes(0x30, 0x37, two, 0x38, 0x39, high, 0x41, 0x42, high, 0x61, 0x62, high);
  const u = builder.bytes(
    ...[0x30, 0x39, three, 0x41, 0x43, three, 0x44, 0x44, afterD, 0x45, 0x46, three],
    ...[0x61, 0x63, three, 0x64, 0x64, afterD, 0x65, 0x66, three],
  );
  const letters = [0x22, 0x2f, 0x5c, 0x62, 0x66, 0x6e, 0x72, 0x74].flatMap((letter) => [letter, letter, target]);
  return builder.bytes(...letters, 0x75, 0x75, u);
}

/** Second digit of a low surrogate, C to F. */
function surrogate(builder: Builder, two: number): number {
  return builder.bytes(0x43, 0x46, two, 0x63, 0x66, two);
}
