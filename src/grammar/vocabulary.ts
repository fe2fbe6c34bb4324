import { TokenKind, type Vocabulary } from "../tokenizer/vocabulary.ts";

/** A vocabulary as the mask engine reads it: token i is `bytes[ends[i - 1] .. ends[i]]`. */
export interface GrammarVocabulary {
  readonly bytes: Uint8Array;
  readonly ends: Uint32Array;
  readonly stopIds: Int32Array;
  /** Names what masks depend on besides the grammar. */
  readonly hash: string;
}

/** True for tokens that stand for text; a grammar never produces any other (control marks, unused slots). */
export function isText(kind: TokenKind): boolean {
  return kind === TokenKind.normal || kind === TokenKind.byte || kind === TokenKind.userDefined;
}

/** The bytes of a token as the mask engine sees it; empty for tokens that are no text. */
export function grammarTokenBytes(vocabulary: Vocabulary, id: number): Uint8Array {
  return isText(vocabulary.kind(id)) ? vocabulary.bytes(id) : new Uint8Array(0);
}

export function grammarVocabulary(vocabulary: Vocabulary): GrammarVocabulary {
  const tokens = Array.from({ length: vocabulary.size }, (_, id) => grammarTokenBytes(vocabulary, id));
  const ends = new Uint32Array(tokens.length);
  let length = 0;
  for (const [id, token] of tokens.entries()) {
    length += token.length;
    ends[id] = length;
  }
  const bytes = new Uint8Array(length);
  for (const [id, token] of tokens.entries()) bytes.set(token, (ends[id] ?? 0) - token.length);
  return { bytes, ends, stopIds: Int32Array.from(vocabulary.stopIds), hash: vocabulary.vocabularyHash };
}
