// The automaton artifact: its parts and its bytes. README.md beside this file is the specification; the C++ loader
// (native/src/grammar/automaton) reads the same bytes.

/** What a state does after its byte edges were offered; arguments are listed in `argumentKinds`. */
export const Op = {
  none: 0,
  /** Go on at `target` without a byte. */
  jump: 1,
  /** Push a frame that comes back to `back`, go on at `target`. */
  call: 2,
  /** Pop a frame and go on where it says; on an empty stack the text is complete. */
  return: 3,
  /** Go on at each of the targets. */
  split: 4,
  /** Push a counter at zero, go on at `head`. */
  push: 5,
  /** Counter on top: below `max` the body (one more), from `min` on the exit (counter popped). */
  count: 6,
  /** Push the frames of a set, go on at `next`. */
  open: 7,
  /** Set on top: `exit` (frames popped) where it may end, `more` where another member may come. */
  head: 8,
  /** Set on top: go on at `next` only if a member in [low, high), or (with `other` = 1) another one, may come. */
  key: 9,
  /** Set on top: note the member (`members.length` = another one) and go on at `next`, if it may come. */
  take: 10,
} as const;
export type Op = (typeof Op)[keyof typeof Op];

/** `state`: a state's number; `count`: a number; `limit`: a number, or Infinity; `set`: a set's number. */
export type ArgumentKind = "state" | "count" | "limit" | "set";

export const argumentKinds: readonly (readonly ArgumentKind[])[] = [
  [],
  ["state"],
  ["state", "state"],
  [],
  [],
  ["state"],
  ["count", "limit", "state", "state"],
  ["set", "state"],
  ["set", "state", "state"],
  ["set", "count", "count", "count", "state"],
  ["set", "count", "state"],
];

export interface State {
  readonly op: Op;
  /** Of the op; for `split` the targets. */
  readonly args: readonly number[];
  /** Triples low, high, target: sorted, disjoint byte ranges. */
  readonly edges: readonly number[];
}

export interface Member {
  /** Place in the order that an ordered set keeps. */
  readonly order: number;
  readonly required: boolean;
  /** Never to be taken. */
  readonly forbidden: boolean;
}

/** What is remembered of an object's keys, or of an array's items that must differ. */
export interface SetSpec {
  readonly members: readonly Member[];
  /** Members come in their order, others after them; else in any order, each once. */
  readonly ordered: boolean;
  /** Members without a number of their own may come, any number of times. */
  readonly others: boolean;
  /** `min` and `max` say more than the required members do, so the members are counted. */
  readonly counted: boolean;
  readonly min: number;
  readonly max: number;
}

export interface Program {
  readonly start: number;
  /** State 0 is the end: no edges, no op. */
  readonly states: readonly State[];
  readonly sets: readonly SetSpec[];
}

export const MAGIC = "SLUICEGA";
export const FORMAT_VERSION = 1;
export const MAX_COUNT = 0x7fff;
const MAX_NUMBER = 2 ** 31 - 1;

/** Bytes of a program. */
export function encodeProgram(program: Program): Uint8Array {
  const out = new Writer();
  for (const character of MAGIC) out.byte(character.charCodeAt(0));
  out.byte(FORMAT_VERSION);
  out.number(program.states.length);
  out.number(program.sets.length);
  out.number(program.start);
  for (const set of program.sets) {
    out.byte((set.ordered ? 1 : 0) | (set.others ? 2 : 0) | (set.counted ? 4 : 0));
    out.number(set.members.length);
    out.number(set.min);
    out.limit(set.max);
    for (const { order, required, forbidden } of set.members)
      out.number(order * 4 + (required ? 2 : 0) + (forbidden ? 1 : 0));
  }
  for (const [id, { op, args, edges }] of program.states.entries()) {
    const count = edges.length / 3;
    out.byte(op | (Math.min(count, 15) << 4));
    if (count >= 15) out.number(count);
    for (let i = 0; i < edges.length; i += 3) {
      out.byte(edges[i] ?? 0);
      out.byte((edges[i + 1] ?? 0) - (edges[i] ?? 0));
      out.relative(id, edges[i + 2] ?? 0);
    }
    if (op === Op.split) {
      out.number(args.length);
      for (const target of args) out.relative(id, target);
    } else {
      for (const [i, kind] of (argumentKinds[op] ?? []).entries()) {
        const value = args[i] ?? 0;
        if (kind === "state") out.relative(id, value);
        else if (kind === "limit") out.limit(value);
        else out.number(value);
      }
    }
  }
  return out.done();
}

export class ArtifactFault extends Error {
  override readonly name = "ArtifactFault";
}

/** Reads what `encodeProgram` wrote. Throws ArtifactFault on any other bytes; what it returns refers to nothing outside itself. */
export function decodeProgram(bytes: Uint8Array): Program {
  const input = new Reader(bytes);
  for (const character of MAGIC)
    if (input.byte() !== character.charCodeAt(0)) throw new ArtifactFault("not an automaton");
  if (input.byte() !== FORMAT_VERSION) throw new ArtifactFault("another version of the automaton format");
  // A state and a set take at least a byte each, so these bounds keep the arrays in proportion to the input.
  const stateCount = input.number(bytes.length);
  const setCount = input.number(bytes.length);
  const start = input.number(stateCount - 1);
  const sets = Array.from({ length: setCount }, () => readSet(input, bytes.length));
  const states = Array.from({ length: stateCount }, (_, id) => readState(input, id, stateCount, sets));
  if (!input.atEnd()) throw new ArtifactFault("bytes after the last state");
  const end = states[0];
  if (end === undefined || end.op !== Op.none || end.edges.length > 0)
    throw new ArtifactFault("state 0 is not the end");
  return { start, states, sets };
}

function readSet(input: Reader, limit: number): SetSpec {
  const flags = input.byte();
  if (flags > 7) throw new ArtifactFault("unknown set flags");
  const count = input.number(limit);
  const min = input.number(MAX_COUNT);
  const max = input.limit(MAX_COUNT);
  const seen = new Uint8Array(count);
  const members = Array.from({ length: count }, (): Member => {
    const value = input.number(count * 4 - 1);
    const order = value >>> 2;
    if (seen[order] === 1) throw new ArtifactFault("two members in one place");
    seen[order] = 1;
    return { order, required: (value & 2) !== 0, forbidden: (value & 1) !== 0 };
  });
  return { members, ordered: (flags & 1) !== 0, others: (flags & 2) !== 0, counted: (flags & 4) !== 0, min, max };
}

function readState(input: Reader, id: number, stateCount: number, sets: readonly SetSpec[]): State {
  const head = input.byte();
  const op = head & 15;
  const kinds = argumentKinds[op];
  if (kinds === undefined || !isOp(op)) throw new ArtifactFault("unknown op");
  const short = head >> 4;
  const count = short === 15 ? input.number(256) : short;
  const edges: number[] = [];
  let next = 0;
  for (let i = 0; i < count; i++) {
    const low = input.byte();
    const high = low + input.byte();
    if (low < next || high > 255) throw new ArtifactFault("edges out of order");
    next = high + 1;
    edges.push(low, high, input.relative(id, stateCount));
  }
  const args: number[] = [];
  if (op === Op.split) {
    for (let left = input.number(stateCount); left > 0; left--) args.push(input.relative(id, stateCount));
  } else {
    for (const kind of kinds) {
      if (kind === "state") args.push(input.relative(id, stateCount));
      else if (kind === "limit") args.push(input.limit(MAX_NUMBER));
      else if (kind === "set") args.push(input.number(sets.length - 1));
      else args.push(input.number(MAX_NUMBER));
    }
  }
  const members = sets[args[0] ?? 0]?.members.length ?? 0;
  const [, low = 0, high = 0, other = 0] = args;
  if (op === Op.key && (low > high || high > members || other > 1)) throw new ArtifactFault("key range out of bounds");
  if (op === Op.take && low > members) throw new ArtifactFault("member out of bounds");
  return { op, args, edges };
}

function isOp(value: number): value is Op {
  return value <= Op.take;
}

class Writer {
  private buffer = new Uint8Array(4096);
  private size = 0;

  byte(value: number): void {
    if (this.size === this.buffer.length) {
      const larger = new Uint8Array(this.buffer.length * 2);
      larger.set(this.buffer);
      this.buffer = larger;
    }
    this.buffer[this.size++] = value;
  }

  /** LEB128. */
  number(value: number): void {
    let rest = value;
    while (rest >= 0x80) {
      this.byte((rest & 0x7f) | 0x80);
      rest = Math.floor(rest / 128);
    }
    this.byte(rest);
  }

  /** Zero stands for none. */
  limit(value: number): void {
    this.number(value === Infinity ? 0 : value + 1);
  }

  /** Zigzag of the distance: most targets are near. */
  relative(from: number, to: number): void {
    const distance = to - from;
    this.number(distance >= 0 ? distance * 2 : -distance * 2 - 1);
  }

  done(): Uint8Array {
    return this.buffer.slice(0, this.size);
  }
}

class Reader {
  private readonly bytes: Uint8Array;
  private at = 0;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
  }

  byte(): number {
    const value = this.bytes[this.at++];
    if (value === undefined) throw new ArtifactFault("ends too early");
    return value;
  }

  number(limit: number): number {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = this.byte();
      value += (byte & 0x7f) * scale;
      if (value > limit) throw new ArtifactFault("a number is out of bounds");
      if (byte < 0x80) return value;
      if (scale > 2 ** 28) throw new ArtifactFault("a number is too long");
    }
  }

  limit(limit: number): number {
    const value = this.number(limit + 1);
    return value === 0 ? Infinity : value - 1;
  }

  relative(from: number, count: number): number {
    const value = this.number(count * 2);
    const target = value % 2 === 0 ? from + value / 2 : from - (value + 1) / 2;
    if (target < 0 || target >= count) throw new ArtifactFault("a target is out of bounds");
    return target;
  }

  atEnd(): boolean {
    return this.at === this.bytes.length;
  }
}
