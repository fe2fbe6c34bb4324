import type { Normalization } from "./bpe.ts";
import type { PreTokenizer } from "./pre-tokenizer.ts";
import type { VocabularyEntry } from "./vocabulary.ts";

/** A special token as the template's text spells it. */
export interface AddedToken {
  readonly id: number;
  readonly text: string;
  /** White space before (after) the token belongs to it and vanishes; HF's `lstrip` and `rstrip`. */
  readonly stripLeft: boolean;
  readonly stripRight: boolean;
}

/** All that a tokenizer file says, whatever its format; what the readers give and `tokenizer.ts` builds from. */
export interface TokenizerDefinition {
  /** Index = token id. */
  readonly entries: readonly VocabularyEntry[];
  readonly addedTokens: readonly AddedToken[];
  /** left id, right id, merged id; in rank order. */
  readonly merges: Uint32Array;
  readonly preTokenizer: PreTokenizer;
  readonly normalization: Normalization;
  readonly ignoreMerges: boolean;
  readonly stopIds: readonly number[];
  readonly bosId: number | undefined;
  readonly eosId: number | undefined;
  /** Raw text (`/v1/completions`) begins with the bos token. */
  readonly addBos: boolean;
  readonly chatTemplate: string | undefined;
  /** `bos_token`, `eos_token`, ... as templates read them. */
  readonly templateTokens: Readonly<Record<string, string>>;
  readonly contextLength: number | undefined;
}
