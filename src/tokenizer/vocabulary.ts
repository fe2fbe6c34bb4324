import { tokenizerFault } from "./fault.ts";

/**
 * What a token is; the numbers are GGUF's `tokenizer.ggml.token_type` and enter the vocabulary hash.
 * `control` tokens are the model's own marks (`<|im_end|>`): skipped in text that a caller sees and never made from
 * text that a caller sent. `userDefined` ones are added words (`<think>`) that are shown.
 */
export const TokenKind = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;
export type TokenKind = (typeof TokenKind)[keyof typeof TokenKind];

export interface VocabularyEntry {
  readonly bytes: Uint8Array;
  readonly kind: TokenKind;
}

export interface Vocabulary {
  readonly size: number;
  /** The token's bytes: a view, not to be written to. Empty for an id outside the vocabulary. */
  bytes(id: number): Uint8Array;
  kind(id: number): TokenKind;
  /** Tokens that end an answer, ascending. */
  readonly stopIds: readonly number[];
  readonly bosId: number | undefined;
  readonly eosId: number | undefined;
  /** sha256 hex; see `hashVocabulary` for the byte layout. */
  readonly vocabularyHash: string;
  /** All bytes, token after token, and where each begins (`size` + 1 offsets): what a mask engine wants in one piece. */
  readonly packed: { readonly bytes: Uint8Array; readonly offsets: Uint32Array; readonly kinds: Uint8Array };
}

/** Packs entries (index = token id) and hashes them. */
export async function createVocabulary(
  entries: readonly VocabularyEntry[],
  ids: { readonly stopIds: Iterable<number>; readonly bosId?: number | undefined; readonly eosId?: number | undefined },
): Promise<Vocabulary> {
  const size = entries.length;
  const offsets = new Uint32Array(size + 1);
  const kinds = new Uint8Array(size);
  let total = 0;
  entries.forEach((entry, id) => {
    offsets[id] = total;
    kinds[id] = entry.kind;
    total += entry.bytes.length;
  });
  offsets[size] = total;
  const bytes = new Uint8Array(total);
  for (const [id, entry] of entries.entries()) bytes.set(entry.bytes, offsets[id]);

  const stopIds = [...new Set(ids.stopIds)].sort((a, b) => a - b);
  for (const id of [...stopIds, ids.bosId, ids.eosId]) {
    if (id !== undefined && (!Number.isInteger(id) || id < 0 || id >= size)) {
      throw tokenizerFault(`special token id ${id} lies outside the vocabulary of ${size}`);
    }
  }
  const packed = { bytes, offsets, kinds };
  const vocabularyHash = await hashVocabulary(packed, stopIds);
  const empty = new Uint8Array(0);
  return {
    size,
    stopIds,
    bosId: ids.bosId,
    eosId: ids.eosId,
    vocabularyHash,
    packed,
    bytes(id) {
      const start = offsets[id];
      const end = offsets[id + 1];
      return start === undefined || end === undefined ? empty : bytes.subarray(start, end);
    },
    kind: (id) => (kinds[id] ?? TokenKind.unused) as TokenKind,
  };
}

/**
 * sha256, hex, over (all numbers little endian):
 *   u32 count
 *   for each id from 0: u8 kind (GGUF token type), u32 length, the token's bytes
 *   u32 number of stop ids, then each as u32, ascending
 * A normal token's bytes are its real bytes (GPT-2's alphabet undone); those of other kinds are its text in UTF-8.
 */
async function hashVocabulary(packed: Vocabulary["packed"], stopIds: readonly number[]): Promise<string> {
  const { bytes, offsets, kinds } = packed;
  const count = kinds.length;
  const image = new Uint8Array(4 + count * 5 + bytes.length + 4 + stopIds.length * 4);
  const view = new DataView(image.buffer);
  view.setUint32(0, count, true);
  let at = 4;
  for (let id = 0; id < count; id++) {
    const start = offsets[id] ?? 0;
    const end = offsets[id + 1] ?? start;
    view.setUint8(at, kinds[id] ?? 0);
    view.setUint32(at + 1, end - start, true);
    image.set(bytes.subarray(start, end), at + 5);
    at += 5 + end - start;
  }
  view.setUint32(at, stopIds.length, true);
  for (const [index, id] of stopIds.entries()) view.setUint32(at + 4 + index * 4, id, true);
  return sha256Hex(image);
}

/** What decides the tokens of a text besides the vocabulary. */
export interface FingerprintParts {
  readonly vocabularyHash: string;
  /** left id, right id, merged id; in rank order. */
  readonly merges: Uint32Array;
  readonly ignoreMerges: boolean;
  readonly normalization: string;
  /** The pre-tokenizer's stages; equal behaviour gives equal JSON whether it came from GGUF or from tokenizer.json. */
  readonly preTokenizer: unknown;
}

/**
 * The tokenizer fingerprint: sha256, hex, over
 *   the 64 ASCII characters of the vocabulary hash
 *   u32 number of merges, then for each, in rank order, u32 left id, u32 right id, u32 merged id (little endian)
 *   u32 length and the UTF-8 bytes of JSON.stringify({ignoreMerges, normalization, preTokenizer}), keys in this order
 */
export async function fingerprintTokenizer(parts: FingerprintParts): Promise<string> {
  const { ignoreMerges, normalization, preTokenizer, merges } = parts;
  const encoder = new TextEncoder();
  const head = encoder.encode(parts.vocabularyHash);
  const tail = encoder.encode(JSON.stringify({ ignoreMerges, normalization, preTokenizer }));
  const image = new Uint8Array(head.length + 4 + merges.length * 4 + 4 + tail.length);
  const view = new DataView(image.buffer);
  image.set(head);
  let at = head.length;
  view.setUint32(at, merges.length / 3, true);
  at += 4;
  for (const id of merges) {
    view.setUint32(at, id, true);
    at += 4;
  }
  view.setUint32(at, tail.length, true);
  image.set(tail, at + 4);
  return sha256Hex(image);
}

async function sha256Hex(data: Uint8Array<ArrayBuffer>): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
