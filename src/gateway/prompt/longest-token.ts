import type { Vocabulary } from "../../tokenizer/vocabulary.ts";

const known = new WeakMap<Vocabulary, number>();

/** Bytes of a vocabulary's longest token: n bytes of text are at least n / this many tokens. */
export function longestTokenBytes(vocabulary: Vocabulary): number {
  let longest = known.get(vocabulary);
  if (longest === undefined) {
    longest = 1;
    const { offsets } = vocabulary.packed;
    for (let id = 0; id < vocabulary.size; id++) {
      longest = Math.max(longest, (offsets[id + 1] ?? 0) - (offsets[id] ?? 0));
    }
    known.set(vocabulary, longest);
  }
  return longest;
}
