// Which members of a set may still come. A set's frames hold, from the bottom: for an ordered set one value, the first
// place that is still open; for any other one word of 32 seen members after the other; and, where members are counted, one
// value more: bits 0-15 all members, 16-30 those that count towards the minimum, 31 set once another member came.
import type { SetSpec } from "./format.ts";

const OTHER_USED = 2 ** 31;

/** A set and what its decisions need, computed once. */
export class SetRules {
  readonly spec: SetSpec;
  /** Frames that it takes on the stack. */
  readonly width: number;
  private readonly words: number;
  /** Member at each place of the order. */
  private readonly byOrder: readonly number[];
  /** From each place on: the first required place (`n` if none), how many required, how many that are not forbidden. */
  private readonly nextRequired: readonly number[];
  private readonly requiredFrom: readonly number[];
  private readonly availableFrom: readonly number[];

  constructor(spec: SetSpec) {
    this.spec = spec;
    const n = spec.members.length;
    this.words = spec.ordered ? 1 : Math.ceil(n / 32);
    this.width = this.words + (spec.counted ? 1 : 0);
    const byOrder = new Array<number>(n).fill(0);
    for (const [k, member] of spec.members.entries()) byOrder[member.order] = k;
    const next = new Array<number>(n + 1).fill(n);
    const required = new Array<number>(n + 1).fill(0);
    const available = new Array<number>(n + 1).fill(0);
    for (let at = n - 1; at >= 0; at--) {
      const member = spec.members[byOrder[at] ?? 0];
      next[at] = member?.required === true ? at : (next[at + 1] ?? n);
      required[at] = (required[at + 1] ?? 0) + (member?.required === true ? 1 : 0);
      available[at] = (available[at + 1] ?? 0) + (member?.forbidden === true ? 0 : 1);
    }
    this.byOrder = byOrder;
    this.nextRequired = next;
    this.requiredFrom = required;
    this.availableFrom = available;
  }

  /** True where the set may end. */
  mayEnd(frame: readonly number[]): boolean {
    return this.requiredLeft(frame) === 0 && (!this.spec.counted || this.effective(frame) >= this.spec.min);
  }

  /** True where some member may come. */
  mayGrow(frame: readonly number[]): boolean {
    if (this.mayTakeOther(frame)) return true;
    const n = this.spec.members.length;
    if (!this.spec.ordered) return this.mayTakeIn(frame, 0, n);
    const from = frame[0] ?? 0;
    const to = Math.min(n - 1, this.nextRequired[from] ?? n);
    for (let at = from; at <= to; at++) if (this.mayTake(frame, this.byOrder[at] ?? 0)) return true;
    return false;
  }

  /** True where some member of [low, high) may come. */
  mayTakeIn(frame: readonly number[], low: number, high: number): boolean {
    for (let k = low; k < high; k++) if (this.mayTake(frame, k)) return true;
    return false;
  }

  mayTake(frame: readonly number[], k: number): boolean {
    const member = this.spec.members[k];
    if (member === undefined || member.forbidden) return false;
    const { ordered, counted, others, min, max } = this.spec;
    if (ordered) {
      const from = frame[0] ?? 0;
      if (member.order < from || member.order > (this.nextRequired[from] ?? 0)) return false;
    } else if ((((frame[k >>> 5] ?? 0) >>> (k & 31)) & 1) === 1) return false;
    if (!counted) return true;
    const count = frame[this.words] ?? 0;
    const requiredAfter = this.requiredLeft(frame) - (member.required ? 1 : 0);
    if ((count & 0xffff) + 1 + requiredAfter > max) return false;
    const left = ordered ? (this.availableFrom[member.order + 1] ?? 0) : this.available(frame) - 1;
    return this.effective(frame) + 1 + left + (others && count < OTHER_USED ? 1 : 0) >= min;
  }

  mayTakeOther(frame: readonly number[]): boolean {
    const { ordered, counted, others, min, max, members } = this.spec;
    if (!others) return false;
    if (ordered && this.nextRequired[frame[0] ?? 0] !== members.length) return false;
    if (!counted) return true;
    const count = frame[this.words] ?? 0;
    // Two others may have one name: only the first surely counts.
    const effective = this.effective(frame) + (count < OTHER_USED ? 1 : 0);
    if ((count & 0xffff) + 1 + Math.max(this.requiredLeft(frame), min - effective) > max) return false;
    return effective + (ordered ? 0 : this.available(frame)) >= min;
  }

  /** The frame after member `k`, or after another one (`k` = number of members). */
  taken(frame: readonly number[], k: number): number[] {
    const { members, ordered, counted, min, max } = this.spec;
    const next = [...frame];
    const other = k === members.length;
    if (ordered) next[0] = other ? members.length : (members[k]?.order ?? 0) + 1;
    else if (!other) next[k >>> 5] = ((next[k >>> 5] ?? 0) | (1 << (k & 31))) >>> 0;
    if (counted) {
      const count = next[this.words] ?? 0;
      const used = count >= OTHER_USED;
      const all = max === Infinity ? 0 : (count & 0xffff) + 1;
      const effective = Math.min(min, this.effective(frame) + (other && used ? 0 : 1));
      next[this.words] = all + effective * 0x10000 + (used || other ? OTHER_USED : 0);
    }
    return next;
  }

  private effective(frame: readonly number[]): number {
    return ((frame[this.words] ?? 0) >>> 16) & 0x7fff;
  }

  private requiredLeft(frame: readonly number[]): number {
    if (this.spec.ordered) return this.requiredFrom[frame[0] ?? 0] ?? 0;
    return this.unseen(frame, (k) => this.spec.members[k]?.required === true);
  }

  private available(frame: readonly number[]): number {
    return this.unseen(frame, (k) => this.spec.members[k]?.forbidden === false);
  }

  private unseen(frame: readonly number[], wanted: (k: number) => boolean): number {
    let count = 0;
    for (let k = 0; k < this.spec.members.length; k++)
      if (wanted(k) && (((frame[k >>> 5] ?? 0) >>> (k & 31)) & 1) === 0) count++;
    return count;
  }
}
