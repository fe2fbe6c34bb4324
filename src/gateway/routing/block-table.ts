/**
 * A flat table of KV blocks in one buffer: (53-bit chain key, tag) -> 32 bits. Open addressing in buckets of ten, so that
 * nothing ever moves: there are no tombstones, no rehashing, and a look-up touches one bucket, seldom two.
 *
 * One thread writes, any number read without locks. An entry is three words, so a reader could meet half of a change. It
 * cannot take one for an entry:
 *   - every change of a bucket lies between two steps of the bucket's sequence number, odd while it lasts;
 *   - a reader reads the sequence number, the entry, and the sequence number again. All of these accesses and all of the
 *     writer's are sequentially consistent atomics, so they have one order on which all threads agree; equal and even
 *     numbers on both sides mean that no write lies between them (as a seqlock; Lameter 2005, Boehm 2012).
 *   - plain reads only look for a candidate. One that is missed by a racing plain read counts as not held, as it was a
 *     moment before.
 * A reader that meets a bucket under change tries again some times and then takes the block as not held: a writer that
 * was preempted there costs a guess, never a wait.
 */

/** A bucket is two cache lines: sequence number, ten keys, ten tags, ten values, and how many entries overflowed to their second bucket. */
const bucketWords = 32;
const ways = 10;
const keysAt = 1;
const tagsAt = keysAt + ways;
const valuesAt = tagsAt + ways;
const overflowAt = valuesAt + ways;

/**
 * Entries a bucket has on average when the table holds what it was made for. 0.3 % of the buckets are full then, and one
 * entry in 100,000 finds both of its buckets full; a prompt's chain is no longer than its first missing block.
 */
const meanLoad = 4;
const maxTries = 64;

const highBits = 21;
const highMask = (1 << highBits) - 1;

/** The 32 low bits of a key. */
export const lowOf = (key: number): number => key | 0;
/** Its 21 high bits. */
export const highOf = (key: number): number => Math.floor(key / 0x1_0000_0000) & highMask;

export class BlockTable {
  readonly #words: Int32Array;
  readonly #buckets: number;
  readonly #shared: boolean;
  readonly #groupBits: number;
  // What was read last; fields, so that a look-up allocates nothing.
  #key = 0;
  #tag = 0;
  #value = 0;

  /** Entries of a key whose tags differ in the last `groupBits` bits only lie in the same buckets. */
  constructor(buffer: ArrayBufferLike, groupBits: number) {
    this.#words = new Int32Array(buffer);
    this.#groupBits = groupBits;
    this.#buckets = this.#words.length / bucketWords;
    this.#shared = typeof SharedArrayBuffer !== "undefined" && buffer instanceof SharedArrayBuffer;
  }

  /** Of a buffer that holds `entries`. */
  static bytes(entries: number): number {
    return Math.max(1, Math.ceil(entries / meanLoad)) * bucketWords * 4;
  }

  /** The value of (key, tag); 0 = none. Any thread. */
  get(low: number, high: number, tag: number): number {
    const whole = high | (tag << highBits);
    const first = this.#bucket(low, whole, 0);
    const value = this.#find(first, low, whole);
    if (value !== 0 || this.#words[first + overflowAt] === 0) return value;
    return this.#find(this.#bucket(low, whole, 1), low, whole);
  }

  /** Calls `visit` with tag and value of each entry of the key whose tag is in the group of `tag`. Any thread. */
  each(low: number, high: number, tag: number, visit: (tag: number, value: number) => void): void {
    const whole = high | (tag << highBits);
    const first = this.#bucket(low, whole, 0);
    this.#visit(first, low, whole, visit);
    if (this.#words[first + overflowAt] !== 0) this.#visit(this.#bucket(low, whole, 1), low, whole, visit);
  }

  /**
   * Sets (key, tag); 0 takes it out. Where both of its buckets are full it takes the place of the entry there whose value
   * has the least `rank`; without one nothing changes. Returns by how many entries the table has grown, or undefined when
   * there was no place. Writer only.
   */
  set(low: number, high: number, tag: number, value: number, rank?: (value: number) => number): -1 | 0 | 1 | undefined {
    const words = this.#words;
    const whole = high | (tag << highBits);
    const first = this.#bucket(low, whole, 0);
    const second = this.#bucket(low, whole, 1);
    let way = this.#wayOf(first, low, whole);
    if (way < 0 && words[first + overflowAt] !== 0) way = this.#wayOf(second, low, whole);
    if (way >= 0) {
      if (value === 0) this.#empty(way);
      else this.#write(way, low, whole, value);
      return value === 0 ? -1 : 0;
    }
    if (value === 0) return 0;
    way = this.#freeWay(first);
    if (way < 0) way = this.#freeWay(second);
    let grown: 0 | 1 = 1;
    if (way < 0) {
      if (rank === undefined) return undefined;
      way = this.#least(first, second, rank);
      this.#empty(way);
      grown = 0;
    }
    this.#write(way, low, whole, value);
    if (bucketOf(way) !== first) this.#store(first + overflowAt, (words[first + overflowAt] ?? 0) + 1);
    return grown;
  }

  /** Empties the buckets that a writer left in the middle of a change when it died. Before another takes its place. */
  repair(): void {
    for (let bucket = 0; bucket < this.#words.length; bucket += bucketWords) {
      const sequence = this.#word(bucket);
      if ((sequence & 1) === 0) continue;
      for (let way = bucket + valuesAt; way < bucket + overflowAt; way++) this.#store(way, 0);
      this.#store(bucket, (sequence + 1) | 0);
    }
  }

  /** MurmurHash3's multipliers and finaliser over key and group; a second choice by another start. */
  #bucket(low: number, whole: number, choice: 0 | 1): number {
    const group = (whole >>> highBits) >>> this.#groupBits;
    let h = Math.imul(low ^ Math.imul((whole & highMask) + choice * 0x9e3779b9, 0xcc9e2d51), 0x85ebca6b);
    h ^= Math.imul(group + 1, 0x1b873593);
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
    h ^= h >>> 16;
    return Math.floor(((h >>> 0) / 0x1_0000_0000) * this.#buckets) * bucketWords;
  }

  #find(bucket: number, low: number, whole: number): number {
    const words = this.#words;
    for (let way = bucket + keysAt; way < bucket + tagsAt; way++) {
      if (words[way] !== low) continue;
      if (!this.#shared) {
        // Nobody to race with, and half the time.
        if (words[way + ways] === whole && words[way + 2 * ways] !== 0) return words[way + 2 * ways] ?? 0;
      } else if (this.#read(way) && this.#key === low && this.#tag === whole && this.#value !== 0) {
        return this.#value;
      }
    }
    return 0;
  }

  #visit(bucket: number, low: number, whole: number, visit: (tag: number, value: number) => void): void {
    // A bucket may hold the key for other groups, too, whose buckets happen to be the same.
    const others = ~(((1 << this.#groupBits) - 1) << highBits);
    for (let way = bucket + keysAt; way < bucket + tagsAt; way++) {
      if (this.#words[way] !== low || !this.#read(way) || this.#value === 0) continue;
      if (this.#key === low && ((this.#tag ^ whole) & others) === 0) visit(this.#tag >>> highBits, this.#value);
    }
  }

  /** One whole entry into the fields; false = its bucket was under change all the time. */
  #read(way: number): boolean {
    const bucket = bucketOf(way);
    for (let tries = 0; tries < maxTries; tries++) {
      const before = this.#word(bucket);
      if ((before & 1) !== 0) continue;
      this.#key = this.#word(way);
      this.#tag = this.#word(way + ways);
      this.#value = this.#word(way + 2 * ways);
      if (this.#word(bucket) === before) return true;
    }
    return false;
  }

  #word(at: number): number {
    // An atomic costs ten times a plain read.
    return this.#shared ? Atomics.load(this.#words, at) : (this.#words[at] ?? 0);
  }

  #store(at: number, value: number): void {
    if (this.#shared) Atomics.store(this.#words, at, value);
    else this.#words[at] = value;
  }

  #wayOf(bucket: number, low: number, whole: number): number {
    const words = this.#words;
    for (let way = bucket + keysAt; way < bucket + tagsAt; way++) {
      if (words[way] === low && words[way + ways] === whole && words[way + 2 * ways] !== 0) return way;
    }
    return -1;
  }

  #freeWay(bucket: number): number {
    for (let way = bucket + keysAt; way < bucket + tagsAt; way++) if (this.#words[way + 2 * ways] === 0) return way;
    return -1;
  }

  #least(first: number, second: number, rank: (value: number) => number): number {
    let least = first + keysAt;
    for (const bucket of [first, second]) {
      for (let way = bucket + keysAt; way < bucket + tagsAt; way++) {
        if (rank(this.#words[way + 2 * ways] ?? 0) < rank(this.#words[least + 2 * ways] ?? 0)) least = way;
      }
    }
    return least;
  }

  #empty(way: number): void {
    const low = this.#words[way] ?? 0;
    const whole = this.#words[way + ways] ?? 0;
    this.#write(way, low, whole, 0);
    const first = this.#bucket(low, whole, 0);
    if (bucketOf(way) !== first) this.#store(first + overflowAt, (this.#words[first + overflowAt] ?? 0) - 1);
  }

  #write(way: number, low: number, whole: number, value: number): void {
    const bucket = bucketOf(way);
    const sequence = this.#words[bucket] ?? 0;
    this.#store(bucket, (sequence + 1) | 0);
    this.#store(way, low);
    this.#store(way + ways, whole);
    this.#store(way + 2 * ways, value);
    this.#store(bucket, (sequence + 2) | 0);
  }
}

const bucketOf = (way: number): number => way - (way % bucketWords);
