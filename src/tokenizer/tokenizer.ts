import { LRUCache } from "lru-cache";
import { invalidRequest } from "../errors.ts";
import { ByteLevelBpe } from "./bpe.ts";
import { type ChatInput, ChatTemplate } from "./chat-template.ts";
import type { TokenizerDefinition } from "./definition.ts";
import { tokenizerFault } from "./fault.ts";
import { MergeTable } from "./merges.ts";
import { detached } from "./piece-cache.ts";
import { compileSplitter } from "./pre-tokenizer.ts";
import { SpecialText } from "./special-text.ts";
import { createStreamDecoder, type DecoderOptions, type StreamDecoder } from "./stream-decode.ts";
import type { ToolCallTags } from "./tool-prompt.ts";
import { createVocabulary, fingerprintTokenizer, TokenKind, type Vocabulary } from "./vocabulary.ts";

/** A model's tokenizer. Safe to share by all requests of a process: it keeps no state but its caches. */
export interface Tokenizer {
  readonly vocabulary: Vocabulary;
  /** sha256 hex over all that decides the tokens of a text; see `fingerprintTokenizer`. */
  readonly fingerprint: string;
  /** Tokens the model was trained for, where the file says it. */
  readonly contextLength: number | undefined;
  readonly chatTemplate: string | undefined;
  /** What stands around a tool call in an answer; undefined where the template has a form of its own, or there is none. */
  readonly toolCallTags: ToolCallTags | undefined;
  /** What raw text (a completion's prompt) begins with: the bos token of models that want it, mostly nothing. */
  readonly prefixIds: readonly number[];
  /** Ordinary text: never yields a special token, whatever it says. */
  encode(text: string): Uint32Array;
  /**
   * A conversation by the model's chat template. Only the template's own text yields special tokens. Throws a 400
   * SluiceError when the template refuses the messages, and `no_chat_template` when there is none.
   */
  encodeChat(input: ChatInput): Uint32Array;
  /** One for each answer. */
  decoder(options?: DecoderOptions): StreamDecoder;
  /** All of `ids` as text, control tokens left out. */
  decode(ids: Iterable<number>): string;
  /** The token's bytes: what OpenAI's logprobs call `bytes`. A view, not to be written to. */
  tokenBytes(id: number): Uint8Array;
  /** The token alone as text; U+FFFD where its bytes are only part of a character. */
  tokenText(id: number): string;
  /** Work done since loading, for metrics. */
  readonly counters: TokenizerCounters;
}

export interface TokenizerCounters {
  /** Characters that went through BPE. */
  readonly encodedCharacters: number;
  /** Characters of conversations whose ids were remembered from an earlier turn. */
  readonly reusedCharacters: number;
}

/** Bytes of text and ids that a tokenizer remembers of conversations: some thousand turns. */
const TURN_CACHE_BYTES = 16 << 20;
/** Above this rank the merge heap's packed keys would not be exact. */
const MAX_MERGES = 1 << 21;

export interface TokenizerOptions {
  /** Pieces of text whose ids are remembered; 0 turns the cache off, to measure what it brings. */
  readonly pieceCacheEntries?: number | undefined;
}

/** Builds a tokenizer. Throws SluiceError `bad_tokenizer_file` for a definition that does not fit together. */
export async function createTokenizer(
  definition: TokenizerDefinition,
  options: TokenizerOptions = {},
): Promise<Tokenizer> {
  const { entries, merges, preTokenizer, normalization, ignoreMerges } = definition;
  if (merges.length / 3 >= MAX_MERGES) throw tokenizerFault(`${merges.length / 3} merges are more than ${MAX_MERGES}`);
  const vocabulary = await createVocabulary(entries, definition);
  const fingerprint = await fingerprintTokenizer({
    vocabularyHash: vocabulary.vocabularyHash,
    merges,
    ignoreMerges,
    normalization,
    preTokenizer,
  });
  const bpe = new ByteLevelBpe({
    merges: new MergeTable(ordinaryMerges(merges, vocabulary)),
    byteTokens: byteTokens(definition),
    splitter: compileSplitter(preTokenizer),
    normalization,
    wholePieces: ignoreMerges ? wholePieces(vocabulary) : undefined,
    cacheEntries: options.pieceCacheEntries,
  });
  return new BpeTokenizer(definition, vocabulary, fingerprint, bpe);
}

class BpeTokenizer implements Tokenizer {
  readonly vocabulary: Vocabulary;
  readonly fingerprint: string;
  readonly contextLength: number | undefined;
  readonly chatTemplate: string | undefined;
  readonly prefixIds: readonly number[];
  readonly counters = { encodedCharacters: 0, reusedCharacters: 0 };
  readonly #bpe: ByteLevelBpe;
  readonly #template: ChatTemplate | undefined;
  /**
   * Ids by the text between two special tokens. BPE never crosses a special token, so a growing conversation repeats
   * all of these but its new turn's.
   */
  readonly #turns = new LRUCache<string, Uint32Array>({
    maxSize: TURN_CACHE_BYTES,
    maxEntrySize: TURN_CACHE_BYTES >> 2,
    sizeCalculation: (ids, text) => 64 + text.length * 2 + ids.length * 4,
  });

  constructor(definition: TokenizerDefinition, vocabulary: Vocabulary, fingerprint: string, bpe: ByteLevelBpe) {
    this.vocabulary = vocabulary;
    this.fingerprint = fingerprint;
    this.contextLength = definition.contextLength;
    this.chatTemplate = definition.chatTemplate;
    this.prefixIds = definition.addBos && definition.bosId !== undefined ? [definition.bosId] : [];
    this.#bpe = bpe;
    const special = new SpecialText(definition.addedTokens, vocabulary);
    this.#template =
      definition.chatTemplate === undefined
        ? undefined
        : new ChatTemplate(definition.chatTemplate, special, definition.templateTokens);
  }

  get toolCallTags(): ToolCallTags | undefined {
    return this.#template?.toolCallTags;
  }

  encode(text: string): Uint32Array {
    this.counters.encodedCharacters += text.length;
    return this.#bpe.encode(text);
  }

  encodeChat(input: ChatInput): Uint32Array {
    if (this.#template === undefined) {
      throw invalidRequest("no_chat_template", "This model has no chat template; use /v1/completions.", "model");
    }
    const parts = this.#template
      .render(input)
      .map((part) => (typeof part === "number" ? Uint32Array.of(part) : this.#encodeTurn(part)));
    const ids = new Uint32Array(parts.reduce((total, part) => total + part.length, 0));
    let at = 0;
    for (const part of parts) {
      ids.set(part, at);
      at += part.length;
    }
    return ids;
  }

  #encodeTurn(text: string): Uint32Array {
    const known = this.#turns.get(text);
    if (known !== undefined) {
      this.counters.reusedCharacters += text.length;
      return known;
    }
    const ids = this.encode(text);
    // A copy of the text: a slice would keep the whole rendered conversation in memory.
    this.#turns.set(detached(text.toWellFormed()), ids);
    return ids;
  }

  decoder(options?: DecoderOptions): StreamDecoder {
    return createStreamDecoder(this.vocabulary, options);
  }

  decode(ids: Iterable<number>): string {
    const decoder = this.decoder();
    return decoder.pushAll(ids) + decoder.flush();
  }

  tokenBytes(id: number): Uint8Array {
    return this.vocabulary.bytes(id);
  }

  tokenText(id: number): string {
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(this.vocabulary.bytes(id));
  }
}

/**
 * Merges whose result is an ordinary token. No published model has others; a file that had would let ordinary text
 * yield a special token.
 */
function ordinaryMerges(merges: Uint32Array, vocabulary: Vocabulary): Uint32Array {
  const kept: number[] = [];
  for (let at = 0; at < merges.length; at += 3) {
    const merged = merges[at + 2] as number;
    if (vocabulary.kind(merged) === TokenKind.normal) kept.push(merges[at] as number, merges[at + 1] as number, merged);
  }
  return kept.length === merges.length ? merges : Uint32Array.from(kept);
}

/** The token of each byte, -1 where the vocabulary has none (SmolLM2 lacks 21: bytes that its training text never had). */
function byteTokens(definition: TokenizerDefinition): Int32Array {
  const table = new Int32Array(256).fill(-1);
  definition.entries.forEach((entry, id) => {
    if (entry.kind === TokenKind.normal && entry.bytes.length === 1) table[entry.bytes[0] as number] = id;
  });
  return table;
}

/** Text of every ordinary token that is whole characters: what `ignore_merges` looks pieces up in. */
function wholePieces(vocabulary: Vocabulary): ReadonlyMap<string, number> {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true, fatal: true });
  const pieces = new Map<string, number>();
  for (let id = 0; id < vocabulary.size; id++) {
    if (vocabulary.kind(id) !== TokenKind.normal) continue;
    try {
      pieces.set(decoder.decode(vocabulary.bytes(id)), id);
    } catch {
      // Part of a character: no piece of text can equal it.
    }
  }
  return pieces;
}
