import type { KvFeedEvent } from "../../backends/backend.ts";
import { chainKey, rootKey } from "../prompt/blocks.ts";

export interface KvIndexOptions {
  /** Blocks known from events, over all backends; more are not taken in (they then count as uncached). */
  readonly maxEventBlocks?: number;
  /** Blocks known from this gateway's own routing; the oldest go first. */
  readonly maxRoutedBlocks?: number;
}

/** Blocks of one backend by its engine's own key, as its feed told them. */
interface Feed {
  readonly keys: Map<string, number>;
  alive: boolean;
  /** Blocks whose parent was never reported: their place in a chain is unknown. */
  orphans: number;
}

export interface FeedState {
  readonly alive: boolean;
  readonly blocks: number;
  readonly orphans: number;
}

/**
 * Which backend holds which prefix. Two sources feed it: backends' KV events (exact, until told otherwise) and this gateway's
 * own routing (a guess, until a time). A chained key stands for its whole prefix, position included, so the index is flat:
 * key -> the few backends that hold it.
 */
export class KvIndex {
  readonly #maxEventBlocks: number;
  readonly #maxRoutedBlocks: number;
  readonly #slots = new Map<string, number>();
  readonly #feeds = new Map<string, Feed>();
  readonly #stored = new Map<number, number[]>();
  /** Flat pairs [slot, until, slot, until, ...]; insertion order is age. */
  readonly #routed = new Map<number, number[]>();
  #nextSlot = 0;
  #eventBlocks = 0;

  constructor(options: KvIndexOptions = {}) {
    this.#maxEventBlocks = options.maxEventBlocks ?? 2 ** 20;
    this.#maxRoutedBlocks = options.maxRoutedBlocks ?? 2 ** 18;
  }

  /** One event of a backend's feed. A block whose parent is unknown cannot be placed and is left out. */
  apply(backend: string, event: KvFeedEvent): void {
    const feed = this.#feed(backend);
    feed.alive = true;
    if (event.type === "heartbeat") return;
    if (event.type === "snapshot") this.#clear(backend, feed);
    else for (const key of event.removed) this.#remove(backend, feed, key);
    for (const block of event.type === "snapshot" ? event.blocks : event.stored) {
      const parent = block.parent === undefined ? rootKey(block.salt) : feed.keys.get(block.parent);
      if (parent === undefined) feed.orphans++;
      else this.#add(backend, feed, block.key, chainKey(parent, block.tokenIds, 0, block.tokenIds.length));
    }
  }

  /** The feed broke. What it told stays, since caches outlive connections; a snapshot will put it right. */
  feedDown(backend: string): void {
    const feed = this.#feeds.get(backend);
    if (feed !== undefined) feed.alive = false;
  }

  feedState(backend: string): FeedState {
    const feed = this.#feeds.get(backend);
    return { alive: feed?.alive ?? false, blocks: feed?.keys.size ?? 0, orphans: feed?.orphans ?? 0 };
  }

  /** Credits `backend` with a prompt routed to it, until `until` (milliseconds of the caller's clock). */
  routed(backend: string, keys: readonly number[], until: number): void {
    const slot = this.#slot(backend);
    for (const key of keys) {
      const pairs = this.#routed.get(key) ?? [];
      // Taken out and put back, so that insertion order stays the order of use.
      this.#routed.delete(key);
      this.#routed.set(key, withPair(pairs, slot, until));
    }
    for (const [oldest] of this.#routed) {
      if (this.#routed.size <= this.#maxRoutedBlocks) break;
      this.#routed.delete(oldest);
    }
  }

  /** Length in blocks of the longest prefix of `keys` that each backend holds without a gap; backends with none are absent. */
  match(keys: readonly number[], now: number): ReadonlyMap<string, number> {
    const names = new Map([...this.#slots].map(([name, slot]) => [slot, name]));
    const matched = new Map<string, number>();
    let holders: number[] = [...names.keys()];
    for (let position = 0; position < keys.length && holders.length > 0; position++) {
      const key = keys[position] ?? 0;
      const stored = this.#stored.get(key);
      const routed = this.#routed.get(key);
      holders = holders.filter(
        (slot) => stored?.includes(slot) === true || (routed !== undefined && holds(routed, slot, now)),
      );
      for (const slot of holders) matched.set(names.get(slot) ?? "", position + 1);
    }
    return matched;
  }

  /** The backend is gone for good, or came back empty. */
  forget(backend: string): void {
    const feed = this.#feeds.get(backend);
    if (feed !== undefined) this.#clear(backend, feed);
    this.#feeds.delete(backend);
    const slot = this.#slots.get(backend);
    this.#slots.delete(backend);
    if (slot === undefined) return;
    for (const [key, pairs] of this.#routed) {
      if (!pairs.some((value, index) => index % 2 === 0 && value === slot)) continue;
      const rest = withPair(pairs, slot, Number.NEGATIVE_INFINITY).slice(0, -2);
      if (rest.length === 0) this.#routed.delete(key);
      else this.#routed.set(key, rest);
    }
  }

  size(): { readonly eventBlocks: number; readonly routedBlocks: number } {
    return { eventBlocks: this.#eventBlocks, routedBlocks: this.#routed.size };
  }

  #slot(backend: string): number {
    const known = this.#slots.get(backend);
    if (known !== undefined) return known;
    const slot = this.#nextSlot++;
    this.#slots.set(backend, slot);
    return slot;
  }

  #feed(backend: string): Feed {
    const known = this.#feeds.get(backend);
    if (known !== undefined) return known;
    const feed: Feed = { keys: new Map(), alive: false, orphans: 0 };
    this.#feeds.set(backend, feed);
    this.#slot(backend);
    return feed;
  }

  #add(backend: string, feed: Feed, engineKey: string, key: number): void {
    if (feed.keys.has(engineKey) || this.#eventBlocks >= this.#maxEventBlocks) return;
    feed.keys.set(engineKey, key);
    this.#eventBlocks++;
    const slot = this.#slot(backend);
    const holders = this.#stored.get(key);
    // A slot stands once for each engine key that maps here: two copies of a block, one removed, still hold it.
    if (holders === undefined) this.#stored.set(key, [slot]);
    else holders.push(slot);
  }

  #remove(backend: string, feed: Feed, engineKey: string): void {
    const key = feed.keys.get(engineKey);
    if (key === undefined) return;
    feed.keys.delete(engineKey);
    this.#eventBlocks--;
    const holders = this.#stored.get(key) ?? [];
    const index = holders.indexOf(this.#slot(backend));
    if (index >= 0) holders.splice(index, 1);
    if (holders.length === 0) this.#stored.delete(key);
  }

  #clear(backend: string, feed: Feed): void {
    for (const engineKey of [...feed.keys.keys()]) this.#remove(backend, feed, engineKey);
    feed.orphans = 0;
  }
}

/** `pairs` with the one of `slot` renewed, at the end. A later time already known is kept. */
function withPair(pairs: readonly number[], slot: number, until: number): number[] {
  const next: number[] = [];
  let latest = until;
  for (let index = 0; index < pairs.length; index += 2) {
    const other = pairs[index] ?? 0;
    const time = pairs[index + 1] ?? 0;
    if (other === slot) latest = Math.max(latest, time);
    else next.push(other, time);
  }
  next.push(slot, latest);
  return next;
}

function holds(pairs: readonly number[], slot: number, now: number): boolean {
  for (let index = 0; index < pairs.length; index += 2) {
    if (pairs[index] === slot) return (pairs[index + 1] ?? 0) > now;
  }
  return false;
}
