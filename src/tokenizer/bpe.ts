import { type MergeTable, NO_MERGE } from "./merges.ts";
import { PieceCache } from "./piece-cache.ts";
import type { Splitter } from "./pre-tokenizer.ts";

export interface BpeOptions {
  readonly merges: MergeTable;
  /** Token id of each byte, or -1 where the vocabulary lacks it: such bytes are dropped, as HF tokenizers does. */
  readonly byteTokens: Int32Array;
  readonly splitter: Splitter;
  readonly normalization: Normalization;
  /** Whole pieces that are tokens in their own right whatever the merges say (`ignore_merges` of Llama 3). */
  readonly wholePieces: ReadonlyMap<string, number> | undefined;
  /** Pieces remembered; 0 turns the cache off (for measuring). */
  readonly cacheEntries?: number | undefined;
}

export type Normalization = "none" | "NFC" | "NFD" | "NFKC" | "NFKD";

/** Above this many bytes a heap finds the next merge: scanning is O(n^2), and a caller chooses the length of a piece. */
const SCAN_LIMIT = 64;
/** Longer pieces hardly repeat. */
const CACHED_PIECE_LENGTH = 48;
const DEFAULT_CACHE_ENTRIES = 65_536;

/**
 * Byte-level BPE: text is split by the pre-tokenizer, each piece becomes bytes, and neighbours merge by rank, the
 * leftmost first among equals (Sennrich et al. 2016; the order of HF `tokenizers`' BPE model).
 */
export class ByteLevelBpe {
  readonly #merges: MergeTable;
  readonly #byteTokens: Int32Array;
  readonly #split: Splitter;
  readonly #normalization: Normalization;
  readonly #wholePieces: ReadonlyMap<string, number> | undefined;
  readonly #cache: PieceCache<Uint32Array> | undefined;
  #symbols = new Int32Array(256);
  #ranks = new Int32Array(256);
  #output = new Uint32Array(1024);
  #length = 0;

  constructor(options: BpeOptions) {
    this.#merges = options.merges;
    this.#byteTokens = options.byteTokens;
    this.#split = options.splitter;
    this.#normalization = options.normalization;
    this.#wholePieces = options.wholePieces;
    const entries = options.cacheEntries ?? DEFAULT_CACHE_ENTRIES;
    this.#cache = entries > 0 ? new PieceCache(entries) : undefined;
  }

  /**
   * Ids of ordinary text: no id of a special token can come out, since those are reached by no merge.
   * Lone surrogates become U+FFFD, as when the text is written as UTF-8.
   */
  encode(text: string): Uint32Array {
    if (text.length === 0) return new Uint32Array(0);
    const wellFormed = text.toWellFormed();
    const normal = this.#normalization === "none" ? wellFormed : wellFormed.normalize(this.#normalization);
    this.#length = 0;
    for (const piece of this.#split(normal)) this.#encodePiece(piece);
    return this.#output.slice(0, this.#length);
  }

  #encodePiece(piece: string): void {
    const cacheable = this.#cache !== undefined && piece.length <= CACHED_PIECE_LENGTH;
    if (cacheable) {
      const hit = this.#cache?.get(piece);
      if (hit !== undefined) {
        this.#reserve(hit.length);
        // A loop: `set` on a typed array costs more than the one to three ids of a usual piece.
        for (let index = 0; index < hit.length; index++) this.#output[this.#length++] = hit[index] as number;
        return;
      }
    }
    const start = this.#length;
    const whole = this.#wholePieces?.get(piece);
    if (whole !== undefined) {
      this.#reserve(1);
      this.#output[this.#length++] = whole;
    } else {
      this.#mergePiece(piece);
    }
    if (cacheable) this.#cache?.set(piece, this.#output.slice(start, this.#length));
  }

  #mergePiece(piece: string): void {
    let count = this.#writeSymbols(piece);
    if (count > 1) count = count <= SCAN_LIMIT ? this.#mergeByScan(count) : this.#mergeByHeap(count);
    this.#reserve(count);
    const symbols = this.#symbols;
    const output = this.#output;
    for (let index = 0; index < count; index++) output[this.#length++] = symbols[index] as number;
  }

  /** Writes the piece's UTF-8 bytes as byte tokens; answers how many. */
  #writeSymbols(piece: string): number {
    const most = piece.length * 3;
    if (this.#symbols.length < most) {
      this.#symbols = new Int32Array(most * 2);
      this.#ranks = new Int32Array(most * 2);
    }
    const symbols = this.#symbols;
    const tokens = this.#byteTokens;
    let count = 0;
    const put = (byte: number): void => {
      const token = tokens[byte] as number;
      if (token >= 0) symbols[count++] = token;
    };
    for (let index = 0; index < piece.length; index++) {
      const unit = piece.charCodeAt(index);
      if (unit < 0x80) {
        put(unit);
      } else if (unit < 0x800) {
        put(0xc0 | (unit >> 6));
        put(0x80 | (unit & 0x3f));
      } else if (unit < 0xd800 || unit > 0xdfff) {
        put(0xe0 | (unit >> 12));
        put(0x80 | ((unit >> 6) & 0x3f));
        put(0x80 | (unit & 0x3f));
      } else {
        const point = piece.codePointAt(index++) as number;
        put(0xf0 | (point >> 18));
        put(0x80 | ((point >> 12) & 0x3f));
        put(0x80 | ((point >> 6) & 0x3f));
        put(0x80 | (point & 0x3f));
      }
    }
    return count;
  }

  /** Short pieces: look for the lowest rank from the left, merge, close the gap. Answers the symbols left. */
  #mergeByScan(initial: number): number {
    const symbols = this.#symbols;
    const ranks = this.#ranks;
    const merges = this.#merges;
    let count = initial;
    for (let at = 0; at + 1 < count; at++) {
      ranks[at] = merges.rankOf(symbols[at] as number, symbols[at + 1] as number);
    }
    while (count > 1) {
      let best = NO_MERGE;
      let at = -1;
      for (let index = 0; index + 1 < count; index++) {
        const rank = ranks[index] as number;
        if (rank < best) {
          best = rank;
          at = index;
        }
      }
      if (at < 0) break;
      symbols[at] = merges.mergedId(best);
      count--;
      for (let index = at + 1; index < count; index++) {
        symbols[index] = symbols[index + 1] as number;
        ranks[index] = ranks[index + 1] as number;
      }
      if (at > 0) ranks[at - 1] = merges.rankOf(symbols[at - 1] as number, symbols[at] as number);
      if (at + 1 < count) ranks[at] = merges.rankOf(symbols[at] as number, symbols[at + 1] as number);
    }
    return count;
  }

  /**
   * Long pieces, O(n log n): a heap of (rank, position) over a linked list of symbols. An entry is stale when the rank
   * of its position has changed since; it is dropped when it comes up.
   */
  #mergeByHeap(count: number): number {
    const symbols = this.#symbols;
    const ranks = this.#ranks;
    const merges = this.#merges;
    const next = new Int32Array(count);
    const previous = new Int32Array(count);
    const heap = new RankHeap(count * 3);
    for (let at = 0; at < count; at++) {
      next[at] = at + 1 < count ? at + 1 : -1;
      previous[at] = at - 1;
      const rank = at + 1 < count ? merges.rankOf(symbols[at] as number, symbols[at + 1] as number) : NO_MERGE;
      ranks[at] = rank;
      if (rank !== NO_MERGE) heap.push(rank, at);
    }
    const rerank = (at: number): void => {
      const right = next[at] as number;
      const rank = right < 0 ? NO_MERGE : merges.rankOf(symbols[at] as number, symbols[right] as number);
      ranks[at] = rank;
      if (rank !== NO_MERGE) heap.push(rank, at);
    };
    while (heap.pop()) {
      const at = heap.position;
      if (ranks[at] !== heap.rank) continue;
      const right = next[at] as number;
      symbols[at] = merges.mergedId(heap.rank);
      ranks[right] = NO_MERGE;
      const after = next[right] as number;
      next[at] = after;
      if (after >= 0) previous[after] = at;
      rerank(at);
      const before = previous[at] as number;
      if (before >= 0) rerank(before);
    }
    let left = 0;
    for (let at = 0; at >= 0; at = next[at] as number) symbols[left++] = symbols[at] as number;
    return left;
  }

  #reserve(more: number): void {
    if (this.#length + more <= this.#output.length) return;
    const grown = new Uint32Array(Math.max(this.#output.length * 2, this.#length + more));
    grown.set(this.#output.subarray(0, this.#length));
    this.#output = grown;
  }
}

/** Smallest rank first, then smallest position; both packed in one exact double (rank < 2^21, position < 2^32). */
class RankHeap {
  #keys: Float64Array;
  #size = 0;
  rank = 0;
  position = 0;

  constructor(capacity: number) {
    this.#keys = new Float64Array(capacity);
  }

  push(rank: number, position: number): void {
    if (this.#size === this.#keys.length) {
      const grown = new Float64Array(this.#keys.length * 2);
      grown.set(this.#keys);
      this.#keys = grown;
    }
    const keys = this.#keys;
    const key = rank * 0x1_0000_0000 + position;
    let at = this.#size++;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      const above = keys[parent] as number;
      if (above <= key) break;
      keys[at] = above;
      at = parent;
    }
    keys[at] = key;
  }

  /** Moves the smallest entry into `rank` and `position`; false when none is left. */
  pop(): boolean {
    if (this.#size === 0) return false;
    const keys = this.#keys;
    const top = keys[0] as number;
    this.rank = Math.floor(top / 0x1_0000_0000);
    this.position = top - this.rank * 0x1_0000_0000;
    const last = keys[--this.#size] as number;
    const size = this.#size;
    let at = 0;
    for (;;) {
      let child = at * 2 + 1;
      if (child >= size) break;
      if (child + 1 < size && (keys[child + 1] as number) < (keys[child] as number)) child++;
      const below = keys[child] as number;
      if (below >= last) break;
      keys[at] = below;
      at = child;
    }
    keys[at] = last;
    return true;
  }
}
