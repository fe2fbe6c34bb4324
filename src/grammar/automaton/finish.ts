// From the states as they were built to the program: what cannot finish goes, alternatives that begin with bytes are merged
// into one deterministic state (subset construction), what nothing reaches is left behind.
import type { Builder } from "./builder.ts";
import type { Fuel } from "./fuel.ts";
import { Op, type Program, type SetSpec, type State } from "./format.ts";

/** Above this many merged states, alternatives stay alternatives: the matcher then follows them side by side. */
const MAX_MERGED = 20_000;

/** Undefined where no text at all is left. */
export function finish(builder: Builder, root: number): Program | undefined {
  const start = builder.op(Op.call, root, builder.end);
  const sets = builder.sets.map((set) => ({ ...set, members: [...set.members] }));
  const states = withoutDeadEnds(builder, sets);
  if (states === undefined || !isAlive(states[start])) return undefined;
  return new Merger(builder, states, sets).run(start);
}

const DEAD: State = { op: Op.none, args: [], edges: [] };

function isAlive(state: State | undefined): boolean {
  return state !== undefined && state !== DEAD;
}

/**
 * The states with every way gone that cannot lead to an end: a text that was let in can always be finished. Members that
 * cannot be finished are forbidden; undefined where another member's value is: what decides whether one may come cannot tell.
 */
function withoutDeadEnds(builder: Builder, sets: SetSpec[]): readonly State[] | undefined {
  const { states, end, fuel } = builder;
  const takers = new Map<string, number[]>();
  for (const [id, { op, args }] of states.entries()) {
    if (op !== Op.take) continue;
    const key = `${args[0]},${args[1]}`;
    const list = takers.get(key);
    if (list === undefined) takers.set(key, [id]);
    else list.push(id);
  }
  // A set whose required members cannot all be finished ends nowhere, which may make others end nowhere in turn.
  const hopeless = new Set<number>();
  // The same for a counter: turns that it must make.
  const stuck = new Set<number>();
  let finishes: Uint8Array;
  const canTake = (set: number, member: number) =>
    (takers.get(`${set},${member}`) ?? []).some((id) => finishes[id] === 1);
  for (let before = -1; ; ) {
    finishes = finishing(states, end, hopeless, stuck, fuel);
    before = hopeless.size + stuck.size;
    for (const [id, set] of sets.entries()) {
      const able = set.members.map((member, k) => !member.forbidden && canTake(id, k));
      const most = able.filter((yes) => yes).length + (set.others && canTake(id, set.members.length) ? 1 : 0);
      const required = set.members.filter((member) => member.required).length;
      if (set.members.some((member, k) => member.required && !able[k]) || most < set.min || required > set.max)
        hopeless.add(id);
    }
    for (const [id, { op, args }] of states.entries())
      if (op === Op.count && (args[0] ?? 0) > 0 && finishes[args[2] ?? 0] === 0) stuck.add(id);
    if (hopeless.size + stuck.size === before) break;
  }
  for (const [id, set] of sets.entries()) {
    const members = set.members.map((member, k) => ({ ...member, forbidden: member.forbidden || !canTake(id, k) }));
    const others = set.others && canTake(id, members.length);
    const unable = (takers.get(`${id},${members.length}`) ?? []).some((taker) => finishes[taker] === 0);
    if (unable) return undefined;
    sets[id] = { ...set, members, others };
  }
  return states.map((state, id) =>
    finishes[id] === 1 ? withoutDeadTargets(state, finishes) : id === end ? state : DEAD,
  );
}

/** 1 for each state from which an end can be reached, as if sets and counters could end whenever they are left. */
function finishing(
  states: readonly State[],
  end: number,
  hopeless: ReadonlySet<number>,
  stuck: ReadonlySet<number>,
  fuel: Fuel,
): Uint8Array {
  const finishes = new Uint8Array(states.length);
  finishes[end] = 1;
  const on = (id: number | undefined) => finishes[id ?? 0] === 1;
  const canFinish = ({ op, args, edges }: State, id: number): boolean => {
    for (let i = 2; i < edges.length; i += 3) if (on(edges[i])) return true;
    const [a = 0, b, c, d, e] = args;
    switch (op) {
      case Op.none:
        return false;
      case Op.return:
        return true;
      case Op.jump:
      case Op.push:
        return on(a);
      case Op.call:
        return on(a) && on(b);
      case Op.split:
        return args.some(on);
      case Op.count:
        return on(d) && !stuck.has(id);
      case Op.open:
        return on(b) && !hopeless.has(a);
      case Op.head:
        return on(b);
      case Op.key:
        return on(e);
      case Op.take:
        return on(c);
    }
  };
  // Targets mostly have smaller numbers than what leads to them, so that few are left after the first round.
  let waiting = states.map((_, id) => id).filter((id) => id !== end);
  for (let before = -1; waiting.length !== before; ) {
    before = waiting.length;
    fuel.spend(before);
    waiting = waiting.filter((id) => {
      const state = states[id];
      const now = state !== undefined && canFinish(state, id);
      if (now) finishes[id] = 1;
      return !now;
    });
  }
  return finishes;
}

function withoutDeadTargets(state: State, finishes: Uint8Array): State {
  const edges: number[] = [];
  for (let i = 0; i < state.edges.length; i += 3) {
    if (finishes[state.edges[i + 2] ?? 0] === 1) edges.push(...state.edges.slice(i, i + 3));
  }
  const dead = (i: number) => finishes[state.args[i] ?? 0] === 0;
  const { op, args } = state;
  if (op === Op.split) return { op, args: args.filter((target) => finishes[target] === 1), edges };
  const gone =
    (op === Op.jump && dead(0)) ||
    (op === Op.push && dead(0)) ||
    (op === Op.call && (dead(0) || dead(1))) ||
    (op === Op.count && dead(3)) ||
    (op === Op.open && dead(1)) ||
    (op === Op.head && dead(1)) ||
    (op === Op.key && dead(4)) ||
    (op === Op.take && dead(2));
  if (gone) return { op: Op.none, args: [], edges };
  // No turn of the loop can be finished: it takes none.
  if (op === Op.count && dead(2)) return { op, args: [0, 0, args[3] ?? 0, args[3] ?? 0], edges };
  return { op, args, edges };
}

class Merger {
  private readonly builder: Builder;
  private readonly old: readonly State[];
  private readonly sets: readonly SetSpec[];
  private readonly states: State[] = [DEAD];
  private readonly ids = new Map<string, number>();
  private readonly waiting: Array<readonly [number, readonly number[]]> = [];
  private readonly usedSets = new Map<number, number>();
  private readonly leavesOf = new Map<number, readonly number[]>();
  private merged = 0;

  constructor(builder: Builder, old: readonly State[], sets: readonly SetSpec[]) {
    this.builder = builder;
    this.old = old;
    this.sets = sets;
    this.ids.set(`${builder.end}`, 0);
  }

  run(start: number): Program {
    const first = this.idOf([start]);
    for (let next = this.waiting.pop(); next !== undefined; next = this.waiting.pop()) {
      const [id, leaves] = next;
      this.states[id] = this.make(leaves);
    }
    const sets: SetSpec[] = [];
    for (const [old, id] of this.usedSets) {
      const set = this.sets[old];
      if (set !== undefined) sets[id] = set;
    }
    return { start: first, states: this.states, sets };
  }

  /** The new state that stands for being at all of these at once. */
  private idOf(ids: readonly number[]): number {
    const [only] = ids;
    const leaves =
      ids.length === 1 && only !== undefined ? this.leaves(only) : [...new Set(ids.flatMap((id) => this.leaves(id)))];
    const key = leaves.length > 1 ? [...leaves].sort((a, b) => a - b).join() : `${leaves[0]}`;
    let id = this.ids.get(key);
    if (id === undefined) {
      id = this.states.length;
      this.ids.set(key, id);
      this.states.push(DEAD);
      this.waiting.push([id, leaves]);
      this.builder.fuel.spend(leaves.length);
    }
    return id;
  }

  /** What a state stands for once jumps and splits are followed. */
  private leaves(id: number): readonly number[] {
    const known = this.leavesOf.get(id);
    if (known !== undefined) return known;
    const found = new Set<number>();
    const seen = new Set<number>();
    const visit = (at: number): void => {
      if (seen.has(at)) return;
      seen.add(at);
      this.builder.fuel.spend(1);
      const { op, args, edges } = this.old[at] ?? DEAD;
      const passes = op === Op.jump || op === Op.split;
      if (!passes || edges.length > 0) found.add(at);
      if (passes) for (const target of args) visit(target);
    };
    visit(id);
    const leaves = [...found];
    this.leavesOf.set(id, leaves);
    return leaves;
  }

  private make(leaves: readonly number[]): State {
    const [only] = leaves;
    if (leaves.length === 1 && only !== undefined) {
      const { op, args, edges } = this.old[only] ?? DEAD;
      const passes = op === Op.jump || op === Op.split;
      return { ...(passes ? DEAD : this.renamed(op, args)), edges: this.mergedEdges(edges) };
    }
    if (this.merged++ > MAX_MERGED) {
      return { op: Op.split, args: leaves.map((leaf) => this.idOf([leaf])), edges: [] };
    }
    const moves: number[] = [];
    const ops = new Map<string, State>();
    let ends = false;
    for (const leaf of leaves) {
      if (leaf === this.builder.end) ends = true;
      const { op, args, edges } = this.old[leaf] ?? DEAD;
      moves.push(...edges);
      if (op !== Op.none && op !== Op.jump && op !== Op.split) ops.set(`${op},${args.join()}`, { op, args, edges: [] });
    }
    const edges = this.mergedEdges(moves);
    const list = [...ops.values()].map(({ op, args }) => this.renamed(op, args));
    const [single] = list;
    if (!ends && list.length <= 1) return { ...(single ?? DEAD), edges };
    const targets = list.map((state) => this.silent(state));
    return { op: Op.split, args: ends ? [0, ...targets] : targets, edges };
  }

  /** A state of this op and no edges, each once. */
  private silent(state: State): number {
    const key = `op ${state.op} ${state.args.join()}`;
    let id = this.ids.get(key);
    if (id === undefined) {
      id = this.states.length;
      this.ids.set(key, id);
      this.states.push(state);
    }
    return id;
  }

  private renamed(op: Op, args: readonly number[]): State {
    const at = (i: number) => this.idOf([args[i] ?? 0]);
    const set = () => this.setOf(args[0] ?? 0);
    const value = (i: number) => args[i] ?? 0;
    switch (op) {
      case Op.call:
        return { op, args: [at(0), at(1)], edges: [] };
      case Op.push:
        return { op, args: [at(0)], edges: [] };
      case Op.count:
        return { op, args: [value(0), value(1), at(2), at(3)], edges: [] };
      case Op.open:
        return { op, args: [set(), at(1)], edges: [] };
      case Op.head:
        return { op, args: [set(), at(1), at(2)], edges: [] };
      case Op.key:
        return { op, args: [set(), value(1), value(2), value(3), at(4)], edges: [] };
      case Op.take:
        return { op, args: [set(), value(1), at(2)], edges: [] };
      default:
        return { op, args: [], edges: [] };
    }
  }

  private setOf(old: number): number {
    const known = this.usedSets.get(old);
    if (known !== undefined) return known;
    this.usedSets.set(old, this.usedSets.size);
    return this.usedSets.size - 1;
  }

  /** Triples, perhaps overlapping, to disjoint ones of new states. */
  private mergedEdges(moves: readonly number[]): number[] {
    const edges: number[] = [];
    const add = (low: number, high: number, target: number) => {
      const last = edges.length - 3;
      if (last >= 0 && edges[last + 2] === target && edges[last + 1] === low - 1) edges[last + 1] = high;
      else edges.push(low, high, target);
    };
    if (disjoint(moves)) {
      for (let i = 0; i < moves.length; i += 3) add(moves[i] ?? 0, moves[i + 1] ?? 0, this.idOf([moves[i + 2] ?? 0]));
      return edges;
    }
    const cuts = new Set<number>();
    for (let i = 0; i < moves.length; i += 3) cuts.add(moves[i] ?? 0).add((moves[i + 1] ?? 0) + 1);
    const bounds = [...cuts].sort((a, b) => a - b);
    for (const [i, low] of bounds.entries()) {
      const next = bounds[i + 1];
      if (next === undefined) break;
      this.builder.fuel.spend(moves.length / 3);
      const targets: number[] = [];
      for (let at = 0; at < moves.length; at += 3) {
        const target = moves[at + 2] ?? 0;
        if ((moves[at] ?? 0) <= low && low <= (moves[at + 1] ?? 0) && !targets.includes(target)) targets.push(target);
      }
      if (targets.length > 0) add(low, next - 1, this.idOf(targets));
    }
    return edges;
  }
}

function disjoint(moves: readonly number[]): boolean {
  for (let i = 3; i < moves.length; i += 3) if ((moves[i] ?? 0) <= (moves[i - 2] ?? 0)) return false;
  return true;
}
