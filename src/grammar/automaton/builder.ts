// Collects the states of a program while it is made. Targets may be given before they are filled.
import type { Fuel } from "./fuel.ts";
import { Op, type SetSpec, type State } from "./format.ts";

export class Builder {
  readonly states: State[] = [];
  readonly sets: SetSpec[] = [];
  readonly fuel: Fuel;
  private readonly byContent = new Map<string, number>();
  private readonly byName = new Map<string, readonly number[]>();
  /** The end of the program, and a state that only returns. */
  readonly end: number;
  readonly back: number;

  constructor(fuel: Fuel) {
    this.fuel = fuel;
    this.end = this.state(Op.none, [], []);
    this.back = this.op(Op.return);
  }

  /** A state without content yet. */
  reserve(): number {
    return this.state(Op.none, [], []);
  }

  fill(id: number, op: Op, args: readonly number[], edges: readonly number[]): void {
    this.states[id] = { op, args, edges };
  }

  state(op: Op, args: readonly number[], edges: readonly number[]): number {
    this.fuel.spend(1 + edges.length / 3);
    this.states.push({ op, args, edges });
    return this.states.length - 1;
  }

  op(op: Op, ...args: readonly number[]): number {
    return this.state(op, args, []);
  }

  /** A state of these edges, each content once. */
  bytes(...edges: readonly number[]): number {
    const key = edges.join();
    const known = this.byContent.get(key);
    if (known !== undefined) return known;
    const id = this.state(Op.none, [], edges);
    this.byContent.set(key, id);
    return id;
  }

  /** What `make` gave when it was first asked for under this name. */
  shared(name: string, make: () => readonly number[]): readonly number[] {
    let known = this.byName.get(name);
    if (known === undefined) {
      known = make();
      this.byName.set(name, known);
    }
    return known;
  }

  /** A guard of a set's member range (Op.key), each content once. */
  guard(set: number, low: number, high: number, other: number, next: number): number {
    const key = `${set},${low},${high},${other}:${next}`;
    let id = this.byContent.get(key);
    if (id === undefined) {
      id = this.op(Op.key, set, low, high, other, next);
      this.byContent.set(key, id);
    }
    return id;
  }

  /** These bytes, then `next`. */
  text(text: string | Uint8Array, next: number): number {
    const bytes = typeof text === "string" ? new TextEncoder().encode(text) : text;
    return bytes.reduceRight((after, byte) => this.bytes(byte, byte, after), next);
  }

  /** Any of these; one of them as it is. */
  any(targets: readonly number[]): number {
    const distinct = [...new Set(targets)];
    const [only] = distinct;
    return distinct.length === 1 && only !== undefined ? only : this.state(Op.split, distinct, []);
  }

  set(spec: SetSpec): number {
    this.fuel.spend(spec.members.length);
    this.sets.push(spec);
    return this.sets.length - 1;
  }
}
