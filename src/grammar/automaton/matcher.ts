// Follows a text byte by byte: for streams of engines that hold no artifact of ours, and for tests of the C++ matcher, which
// makes the same decisions in the same order (README.md).
import { Op, type Program } from "./format.ts";
import { SetRules } from "./sets.ts";

/** Configurations kept at once; more are left out. Each can finish by itself, so leaving one out never leads to a dead end. */
export const MAX_CONFIGURATIONS = 64;
/** Steps without a byte, for one byte. */
export const MAX_SILENT_STEPS = 4096;
const MAX_NESTED_SPLITS = 128;

/** A stack, shared by all that grew from it. */
interface Frame {
  readonly below: Frame | undefined;
  readonly state: number;
  readonly value: number;
}

interface Configuration {
  readonly state: number;
  readonly stack: Frame | undefined;
}

/** What is known of one text; `bytes` moves on, `fork` copies for nothing. */
export class ByteMatcher {
  private readonly program: Program;
  private readonly sets: readonly SetRules[];
  private now: readonly Configuration[];

  constructor(program: Program, from?: ByteMatcher) {
    this.program = program;
    this.sets = from?.sets ?? program.sets.map((set) => new SetRules(set));
    this.now = from?.now ?? new Closure(this.program, this.sets).from(program.start, undefined);
  }

  /** Takes the bytes, or returns false at the first that cannot come here; then nothing can follow. */
  bytes(text: Uint8Array): boolean {
    for (const byte of text) if (!this.byte(byte)) return false;
    return true;
  }

  byte(byte: number): boolean {
    const closure = new Closure(this.program, this.sets);
    for (const { state, stack } of this.now) {
      const edges = this.program.states[state]?.edges ?? [];
      for (let i = 0; i < edges.length; i += 3) {
        if (byte < (edges[i] ?? 0)) break;
        if (byte <= (edges[i + 1] ?? 0)) {
          closure.follow(edges[i + 2] ?? 0, stack, 0);
          break;
        }
      }
    }
    this.now = closure.found;
    return this.now.length > 0;
  }

  /** True where the text may end. */
  complete(): boolean {
    return this.now.some(({ state }) => state === 0);
  }

  /** True while the text so far is, or can become, a whole one. */
  alive(): boolean {
    return this.now.length > 0;
  }

  /** Ranges (pairs low, high) of the bytes that may come now, in order. */
  nextBytes(): number[] {
    const cuts = new Set<number>();
    for (const { state } of this.now) {
      const edges = this.program.states[state]?.edges ?? [];
      for (let i = 0; i < edges.length; i += 3) cuts.add(edges[i] ?? 0).add((edges[i + 1] ?? 0) + 1);
    }
    const bounds = [...cuts].sort((a, b) => a - b);
    const ranges: number[] = [];
    for (const [i, low] of bounds.entries()) {
      const next = bounds[i + 1];
      // Between two cuts all bytes lead to the same.
      if (next === undefined || !this.fork().byte(low)) continue;
      if (ranges.at(-1) === low - 1) ranges[ranges.length - 1] = next - 1;
      else ranges.push(low, next - 1);
    }
    return ranges;
  }

  fork(): ByteMatcher {
    return new ByteMatcher(this.program, this);
  }
}

/** All configurations that are reached without a byte; collects them until it is thrown away. */
class Closure {
  readonly found: Configuration[] = [];
  private readonly program: Program;
  private readonly sets: readonly SetRules[];
  private steps = 0;

  constructor(program: Program, sets: readonly SetRules[]) {
    this.program = program;
    this.sets = sets;
  }

  from(state: number, stack: Frame | undefined): readonly Configuration[] {
    this.follow(state, stack, 0);
    return this.found;
  }

  follow(first: number, on: Frame | undefined, depth: number): void {
    if (depth > MAX_NESTED_SPLITS) return;
    let state = first;
    let stack = on;
    while (this.steps++ < MAX_SILENT_STEPS) {
      const { op, args, edges } = this.program.states[state] ?? { op: Op.none, args: [], edges: [] };
      if ((edges.length > 0 || state === 0) && !this.add(state, stack)) return;
      const [a = 0, b = 0, c = 0, d = 0, e = 0] = args;
      switch (op) {
        case Op.none:
          return;
        case Op.jump:
          state = a;
          break;
        case Op.call:
          stack = { below: stack, state: b, value: 0 };
          state = a;
          break;
        case Op.return:
          state = stack?.state ?? 0;
          stack = stack?.below;
          break;
        case Op.split:
          for (const target of args) this.follow(target, stack, depth + 1);
          return;
        case Op.push:
          stack = { below: stack, state: a, value: 0 };
          state = a;
          break;
        case Op.count: {
          if (stack === undefined) return;
          const { below, value } = stack;
          if (value < b) {
            const next = Math.min(value + 1, b === Infinity ? a : b);
            this.follow(c, { below, state: stack.state, value: next }, depth + 1);
          }
          if (value < a) return;
          stack = below;
          state = d;
          break;
        }
        case Op.open:
          for (let i = this.sets[a]?.width ?? 0; i > 0; i--) stack = { below: stack, state, value: 0 };
          state = b;
          break;
        case Op.head: {
          const rules = this.sets[a];
          const view = rules && viewOf(stack, rules.width);
          if (rules === undefined || view === undefined) return;
          if (rules.mayEnd(view.values)) this.follow(b, view.below, depth + 1);
          if (!rules.mayGrow(view.values)) return;
          state = c;
          break;
        }
        case Op.key: {
          const rules = this.sets[a];
          const view = rules && viewOf(stack, rules.width);
          if (rules === undefined || view === undefined) return;
          if (!rules.mayTakeIn(view.values, b, c) && !(d === 1 && rules.mayTakeOther(view.values))) return;
          state = e;
          break;
        }
        case Op.take: {
          const rules = this.sets[a];
          const view = rules && viewOf(stack, rules.width);
          if (rules === undefined || view === undefined) return;
          const allowed =
            b === rules.spec.members.length ? rules.mayTakeOther(view.values) : rules.mayTake(view.values, b);
          if (!allowed) return;
          const owner = stack?.state ?? 0;
          stack = view.below;
          for (const value of rules.taken(view.values, b)) stack = { below: stack, state: owner, value };
          state = c;
          break;
        }
      }
    }
  }

  /** False where the configuration is known already or there is no room. */
  private add(state: number, stack: Frame | undefined): boolean {
    if (this.found.some((known) => known.state === state && sameStack(known.stack, stack))) return false;
    if (this.found.length >= MAX_CONFIGURATIONS) return false;
    this.found.push({ state, stack });
    return true;
  }
}

function viewOf(
  stack: Frame | undefined,
  width: number,
): { readonly values: readonly number[]; readonly below: Frame | undefined } | undefined {
  const values = new Array<number>(width);
  let at = stack;
  for (let i = width - 1; i >= 0; i--) {
    if (at === undefined) return undefined;
    values[i] = at.value;
    at = at.below;
  }
  return { values, below: at };
}

function sameStack(a: Frame | undefined, b: Frame | undefined): boolean {
  let [x, y] = [a, b];
  while (x !== y) {
    if (x === undefined || y === undefined || x.state !== y.state || x.value !== y.value) return false;
    x = x.below;
    y = y.below;
  }
  return true;
}
