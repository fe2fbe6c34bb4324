import type { KvFeedEvent } from "../../backends/backend.ts";
import { chainKey, rootKey } from "../prompt/blocks.ts";
import { BlockTable, highOf, lowOf } from "./block-table.ts";
import { EngineKeys } from "./engine-keys.ts";
import { maxBackends, Slots } from "./slots.ts";

/** Where an index lies. Threads of one gateway share it; one alone has memory of its own. */
export interface KvIndexMemory {
  /** What events tell, at most so many blocks. Written by the thread that follows the feeds. */
  readonly stored: ArrayBufferLike;
  readonly maxEventBlocks: number;
  /** What each thread routed. Written by that thread. */
  readonly routed: readonly ArrayBufferLike[];
  /** One word a backend: 1 = its feed is alive. Written by the thread that follows it. */
  readonly feeds: ArrayBufferLike;
}

export interface KvIndexOptions {
  /** Blocks known from events, over all backends; more are not taken in (they then count as uncached). */
  readonly maxEventBlocks?: number | undefined;
  /** Blocks known from a thread's own routing; where their two buckets of ten are full, the one that expires first goes. */
  readonly maxRoutedBlocks?: number | undefined;
  readonly slots?: Slots;
  /** Made with bounds of its own. */
  readonly memory?: KvIndexMemory;
  /** Whose table of routed blocks this one writes. */
  readonly thread?: number;
}

/** Blocks of one backend by its engine's own key, as its feed told them. */
interface Feed {
  readonly slot: number;
  readonly keys: EngineKeys;
  /** Blocks whose parent was never reported: their place in a chain is unknown. */
  orphans: number;
}

export interface FeedState {
  readonly alive: boolean;
  readonly blocks: number;
  readonly orphans: number;
}

const groupSize = 32;
const groups = maxBackends / groupSize;
/** Routed blocks of eight neighbouring backends share a bucket, so that a prefix which all have does not fill it. */
const octetBits = 3;
const octetSize = 2 ** octetBits;

/** An end further off than this has passed: ends are 32 bits of milliseconds, which come round after 49 days. */
const longestTtlMs = 2 ** 22;

const defaultEventBlocks = 2 ** 20;
const defaultRoutedBlocks = 2 ** 18;

/** Buffers for an index that `threads` threads share; memory is taken as it fills. */
export function kvIndexMemory(
  allocate: (bytes: number) => ArrayBufferLike,
  threads: number,
  options: Pick<KvIndexOptions, "maxEventBlocks" | "maxRoutedBlocks"> = {},
): KvIndexMemory {
  const { maxEventBlocks = defaultEventBlocks, maxRoutedBlocks = defaultRoutedBlocks } = options;
  return {
    stored: allocate(BlockTable.bytes(maxEventBlocks)),
    maxEventBlocks,
    routed: Array.from({ length: threads }, () => allocate(BlockTable.bytes(maxRoutedBlocks))),
    feeds: allocate(maxBackends * 4),
  };
}

/**
 * Which backend holds which prefix. Two sources feed it: backends' KV events (exact, until told otherwise) and this gateway's
 * own routing (a guess, until a time). A chained key stands for its whole prefix, position included, so the index is flat:
 * (key, group of 32 backends) -> who of them holds it, and (key, backend) -> until when it is credited with it.
 * Memory is bounded: 32 bytes a block from events and as much a routed one, allocated when the index is made, and 23 to 46
 * bytes for each block that a backend's feed has named, in the thread that follows it.
 */
export class KvIndex {
  readonly #maxEventBlocks: number;
  readonly #slots: Slots;
  readonly #feeds = new Map<string, Feed>();
  readonly #stored: BlockTable;
  readonly #routed: readonly BlockTable[];
  readonly #own: BlockTable;
  readonly #alive: Int32Array;
  /** Further engine keys of one backend for one and the same block, by block and slot: it is held until the last is removed. */
  readonly #copies = new Map<string, number>();
  #eventBlocks = 0;
  #routedBlocks = 0;

  // What one look-up works on; kept, so that it allocates nothing.
  readonly #holders = new Int32Array(groups);
  readonly #depths = new Int32Array(maxBackends);
  #routedBits = 0;
  #now = 0;

  constructor(options: KvIndexOptions = {}) {
    const { slots = new Slots(), thread = 0 } = options;
    const memory = options.memory ?? kvIndexMemory((bytes) => new ArrayBuffer(bytes), 1, options);
    this.#maxEventBlocks = memory.maxEventBlocks;
    this.#slots = slots;
    this.#stored = new BlockTable(memory.stored, 0);
    this.#routed = memory.routed.map((buffer) => new BlockTable(buffer, octetBits));
    const own = this.#routed[thread];
    if (own === undefined) throw new RangeError(`there is no table of routed blocks for thread ${thread}`);
    this.#own = own;
    this.#alive = new Int32Array(memory.feeds);
  }

  /** One event of a backend's feed. A block whose parent is unknown cannot be placed and is left out. */
  apply(backend: string, event: KvFeedEvent): void {
    const feed = this.#feed(backend);
    if (feed === undefined) return;
    Atomics.store(this.#alive, feed.slot, 1);
    if (event.type === "heartbeat") return;
    if (event.type === "snapshot") this.#clear(feed);
    else for (const key of event.removed) this.#remove(feed, key);
    for (const block of event.type === "snapshot" ? event.blocks : event.stored) {
      const parent = block.parent === undefined ? rootKey(block.salt) : feed.keys.get(block.parent);
      if (parent === undefined) feed.orphans++;
      else this.#add(feed, block.key, chainKey(parent, block.tokenIds, 0, block.tokenIds.length));
    }
  }

  /** The feed broke. What it told stays, since caches outlive connections; a snapshot will put it right. */
  feedDown(backend: string): void {
    const feed = this.#feeds.get(backend);
    if (feed !== undefined) Atomics.store(this.#alive, feed.slot, 0);
  }

  /** `blocks` and `orphans` are known to the thread that follows the feed only. */
  feedState(backend: string): FeedState {
    const slot = this.#slots.of(backend);
    const feed = this.#feeds.get(backend);
    const alive = slot !== undefined && this.#alive[slot] === 1;
    return { alive, blocks: feed?.keys.size ?? 0, orphans: feed?.orphans ?? 0 };
  }

  /** Credits `backend` with a prompt routed to it, until `until` (milliseconds of the caller's clock). */
  routed(backend: string, keys: readonly number[], until: number): void {
    const slot = this.#slots.of(backend);
    if (slot === undefined) return;
    // 0 stands for an empty place.
    const end = Math.floor(until) | 0 || 1;
    const rank = (held: number) => (held - end) | 0;
    for (const key of keys) {
      const low = lowOf(key);
      const high = highOf(key);
      const known = this.#own.get(low, high, slot);
      // A later end already known is kept.
      if (known !== 0 && rank(known) >= 0) continue;
      if (this.#own.set(low, high, slot, end, rank) === 1) this.#routedBlocks++;
    }
  }

  /** Length in blocks of the longest prefix of `keys` that each backend holds without a gap; backends with none are absent. */
  match(keys: readonly number[], now: number): ReadonlyMap<string, number> {
    const holders = this.#holders;
    const depths = this.#depths;
    holders.fill(0);
    let last = -1;
    for (const slot of this.#slots.all.values()) {
      const group = slot >>> 5;
      holders[group] = (holders[group] ?? 0) | (1 << (slot & 31));
      depths[slot] = 0;
      if (group > last) last = group;
    }
    this.#now = Math.floor(now);
    let any = last >= 0;
    for (let position = 0; position < keys.length && any; position++) {
      const key = keys[position] ?? 0;
      const low = lowOf(key);
      const high = highOf(key);
      any = false;
      for (let group = 0; group <= last; group++) {
        const wanted = holders[group] ?? 0;
        if (wanted === 0) continue;
        let held = this.#stored.get(low, high, group) & wanted;
        if (held !== wanted) held |= this.#credited(low, high, group, wanted & ~held);
        for (let lost = wanted & ~held; lost !== 0; lost &= lost - 1) {
          depths[group * groupSize + (31 - Math.clz32(lost & -lost))] = position;
        }
        holders[group] = held;
        if (held !== 0) any = true;
      }
    }
    const matched = new Map<string, number>();
    for (const [id, slot] of this.#slots.all) {
      const whole = ((holders[slot >>> 5] ?? 0) & (1 << (slot & 31))) !== 0;
      const depth = whole ? keys.length : (depths[slot] ?? 0);
      if (depth > 0) matched.set(id, depth);
    }
    return matched;
  }

  /** The backend is gone for good, or came back empty. What was routed to it expires; without its slot it is found no more. */
  forget(backend: string): void {
    const feed = this.#feeds.get(backend);
    if (feed !== undefined) {
      this.#clear(feed);
      Atomics.store(this.#alive, feed.slot, 0);
    }
    this.#feeds.delete(backend);
  }

  /** `routedBlocks`: of this thread, those included that have expired and were not replaced. */
  size(): { readonly eventBlocks: number; readonly routedBlocks: number } {
    return { eventBlocks: this.#eventBlocks, routedBlocks: this.#routedBlocks };
  }

  /** Of `wanted`, those that some thread has credited with the block. */
  #credited(low: number, high: number, group: number, wanted: number): number {
    this.#routedBits = 0;
    for (let part = 0; part < groupSize / octetSize; part++) {
      if (((wanted >>> (part * octetSize)) & 0xff) === 0) continue;
      const slot = group * groupSize + part * octetSize;
      for (const table of this.#routed) table.each(low, high, slot, this.#credit);
    }
    return this.#routedBits & wanted;
  }

  readonly #credit = (slot: number, until: number): void => {
    const left = (until - this.#now) | 0;
    if (left > 0 && left <= longestTtlMs) this.#routedBits |= 1 << (slot & 31);
  };

  #feed(backend: string): Feed | undefined {
    const known = this.#feeds.get(backend);
    if (known !== undefined) return known;
    const slot = this.#slots.of(backend);
    if (slot === undefined) return undefined;
    const feed: Feed = { slot, keys: new EngineKeys(), orphans: 0 };
    this.#feeds.set(backend, feed);
    return feed;
  }

  #add(feed: Feed, engineKey: string, key: number): void {
    if (this.#eventBlocks >= this.#maxEventBlocks || feed.keys.has(engineKey)) return;
    const [low, high, group, bit] = [lowOf(key), highOf(key), feed.slot >>> 5, 1 << (feed.slot & 31)];
    const holders = this.#stored.get(low, high, group);
    if ((holders & bit) !== 0) {
      const copy = copyKey(key, feed.slot);
      this.#copies.set(copy, (this.#copies.get(copy) ?? 0) + 1);
    } else if (this.#stored.set(low, high, group, holders | bit) === undefined) return;
    feed.keys.set(engineKey, key);
    this.#eventBlocks++;
  }

  #remove(feed: Feed, engineKey: string): void {
    const key = feed.keys.get(engineKey);
    if (key === undefined) return;
    feed.keys.delete(engineKey);
    this.#eventBlocks--;
    const copy = copyKey(key, feed.slot);
    const copies = this.#copies.get(copy) ?? 0;
    if (copies > 1) this.#copies.set(copy, copies - 1);
    else if (copies === 1) this.#copies.delete(copy);
    else this.#takeOut(key, feed.slot);
  }

  #clear(feed: Feed): void {
    for (const key of feed.keys.chains()) {
      this.#copies.delete(copyKey(key, feed.slot));
      this.#takeOut(key, feed.slot);
    }
    this.#eventBlocks -= feed.keys.size;
    feed.keys.clear();
    feed.orphans = 0;
  }

  #takeOut(key: number, slot: number): void {
    const [low, high, group] = [lowOf(key), highOf(key), slot >>> 5];
    this.#stored.set(low, high, group, this.#stored.get(low, high, group) & ~(1 << (slot & 31)));
  }
}

const copyKey = (key: number, slot: number): string => `${key}:${slot}`;
