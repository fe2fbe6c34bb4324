/**
 * Finds stop strings in text that comes in pieces. What is released never holds any part of a stop string that is found
 * later, and the cut does not depend on where the pieces ended: the stop string that is complete first wins, of two that
 * are complete at once the one that began earlier.
 */
export class StopMatcher {
  readonly #stops: readonly string[];
  #held = "";

  constructor(stops: readonly string[]) {
    this.#stops = stops;
  }

  /** UTF-16 units kept back because they may be the beginning of a stop string. */
  get heldLength(): number {
    return this.#held.length;
  }

  /** `hit`: a stop string is complete; `text` is what came before it and the matcher is finished. */
  push(piece: string): { readonly text: string; readonly hit: boolean } {
    if (this.#stops.length === 0) return { text: piece, hit: false };
    const buffer = this.#held + piece;
    let cut = -1;
    let cutEnd = Number.POSITIVE_INFINITY;
    for (const stop of this.#stops) {
      const start = buffer.indexOf(stop);
      if (start < 0) continue;
      const end = start + stop.length;
      if (end < cutEnd || (end === cutEnd && start < cut)) {
        cut = start;
        cutEnd = end;
      }
    }
    if (cut >= 0) {
      this.#held = "";
      return { text: buffer.slice(0, cut), hit: true };
    }
    const keep = this.#beginningAtEndOf(buffer);
    this.#held = keep === 0 ? "" : buffer.slice(-keep);
    return { text: keep === 0 ? buffer : buffer.slice(0, -keep), hit: false };
  }

  /** The answer is over: what was held back was no stop string after all. */
  flush(): string {
    const held = this.#held;
    this.#held = "";
    return held;
  }

  /** Length of the longest end of `buffer` that begins a stop string. */
  #beginningAtEndOf(buffer: string): number {
    const last = buffer.charCodeAt(buffer.length - 1);
    let longest = 0;
    for (const stop of this.#stops) {
      for (let length = Math.min(stop.length - 1, buffer.length); length > longest; length--) {
        // Most lengths fail on their last unit; only the rest pay for a comparison.
        if (stop.charCodeAt(length - 1) === last && buffer.endsWith(stop.slice(0, length))) longest = length;
      }
    }
    return longest;
  }
}
