/** Slices shorter than this are copied by V8, longer ones keep their whole parent string alive. */
const V8_SLICE_LENGTH = 13;

/**
 * A bounded cache of short text pieces in two generations: a hit in the old one moves the entry to the young one; when
 * the young one is full it becomes the old one and the old one is dropped. It keeps what was used lately, as an LRU
 * list does, for the price of one Map look-up on a hit.
 */
export class PieceCache<Value> {
  #young = new Map<string, Value>();
  #old = new Map<string, Value>();
  readonly #generation: number;

  /** Holds at most `entries` pieces. */
  constructor(entries: number) {
    this.#generation = Math.max(1, entries >> 1);
  }

  get size(): number {
    return this.#young.size + this.#old.size;
  }

  get(piece: string): Value | undefined {
    const young = this.#young.get(piece);
    if (young !== undefined) return young;
    const old = this.#old.get(piece);
    if (old !== undefined) {
      this.#old.delete(piece);
      this.#insert(piece, old);
    }
    return old;
  }

  /** `piece` must be well-formed UTF-16. */
  set(piece: string, value: Value): void {
    this.#insert(piece.length < V8_SLICE_LENGTH ? piece : detached(piece), value);
  }

  #insert(piece: string, value: Value): void {
    if (this.#young.size >= this.#generation) {
      this.#old = this.#young;
      this.#young = new Map();
    }
    this.#young.set(piece, value);
  }
}

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/**
 * A copy that does not point into the string it was cut from. Without it a cache of a few words could hold every
 * prompt they came from in memory. `text` must be well-formed UTF-16.
 */
export function detached(text: string): string {
  return decoder.decode(encoder.encode(text));
}
