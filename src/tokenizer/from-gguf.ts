import { endsTurn } from "./stop-tokens.ts";
import { tokenTextToBytes } from "./byte-alphabet.ts";
import type { AddedToken, TokenizerDefinition } from "./definition.ts";
import { tokenizerFault } from "./fault.ts";
import { type GgufMetadata, type GgufValue, type ReadAt, readGgufMetadata } from "./gguf-metadata.ts";
import { namedPreTokenizer } from "./pre-tokenizer.ts";
import { TokenKind, type VocabularyEntry } from "./vocabulary.ts";

const WANTED = /^(general\.architecture|tokenizer\..*|[^.]+\.context_length)$/;

/** Reads the tokenizer out of a GGUF's metadata. Throws SluiceError `bad_tokenizer_file`. */
export async function definitionFromGguf(readAt: ReadAt): Promise<TokenizerDefinition> {
  const metadata = await readGgufMetadata(readAt, (key) => WANTED.test(key));
  const model = text(metadata, "tokenizer.ggml.model");
  if (model !== "gpt2") {
    throw tokenizerFault(`GGUF: tokenizer model "${model ?? "none"}" is not supported; byte-level BPE ("gpt2") is`);
  }
  const tokens = strings(metadata, "tokenizer.ggml.tokens");
  const kinds = metadata.values.get("tokenizer.ggml.token_type");
  if (!(kinds instanceof Float64Array) || kinds.length !== tokens.length) {
    throw tokenizerFault("GGUF: tokenizer.ggml.token_type is missing or has not one entry for each token");
  }
  const encoder = new TextEncoder();
  const added: AddedToken[] = [];
  const entries = tokens.map((token, id): VocabularyEntry => {
    const kind = tokenKind(kinds[id], id);
    if (kind === TokenKind.control || kind === TokenKind.userDefined) {
      added.push({ id, text: token, stripLeft: false, stripRight: false });
    }
    return { kind, bytes: tokenBytes(token, kind, encoder) };
  });
  const pre = namedPreTokenizer(text(metadata, "tokenizer.ggml.pre") ?? "gpt-2");
  const id = (name: string): number | undefined => number(metadata, `tokenizer.ggml.${name}_token_id`);
  const stopIds = [id("eos"), id("eot"), id("eom")].filter((stop) => stop !== undefined);
  for (const token of added)
    if (entries[token.id]?.kind === TokenKind.control && endsTurn(token.text)) stopIds.push(token.id);
  const architecture = text(metadata, "general.architecture");
  return {
    entries,
    addedTokens: added,
    merges: resolveMerges(strings(metadata, "tokenizer.ggml.merges"), tokens),
    preTokenizer: pre.stages,
    normalization: pre.normalization,
    ignoreMerges: pre.ignoreMerges,
    stopIds,
    bosId: id("bos"),
    eosId: id("eos"),
    addBos: metadata.values.get("tokenizer.ggml.add_bos_token") === true,
    chatTemplate: text(metadata, "tokenizer.chat_template"),
    templateTokens: templateTokens(tokens, id),
    contextLength: architecture === undefined ? undefined : number(metadata, `${architecture}.context_length`),
  };
}

function templateTokens(tokens: readonly string[], id: (name: string) => number | undefined): Record<string, string> {
  const named: Record<string, string> = {};
  for (const [key, name] of [
    ["bos_token", "bos"],
    ["eos_token", "eos"],
    ["unk_token", "unknown"],
    ["pad_token", "padding"],
  ] as const) {
    const token = tokens[id(name) ?? -1];
    if (token !== undefined) named[key] = token;
  }
  return named;
}

/**
 * The merges as ids. Throws when one names a token that the vocabulary lacks: such a file would encode wrongly.
 * A merge is `left right`; the alphabet has no space, so the first one parts them.
 */
export function resolveMerges(
  merges: readonly (string | readonly [string, string])[],
  tokens: readonly (string | undefined)[],
): Uint32Array {
  const ids = new Map<string, number>();
  tokens.forEach((token, id) => {
    if (token !== undefined) ids.set(token, id);
  });
  const resolved = new Uint32Array(merges.length * 3);
  merges.forEach((merge, rank) => {
    const space = typeof merge === "string" ? merge.indexOf(" ") : 0;
    const left = typeof merge === "string" ? merge.slice(0, space) : merge[0];
    const right = typeof merge === "string" ? merge.slice(space + 1) : merge[1];
    const leftId = ids.get(left);
    const rightId = ids.get(right);
    const mergedId = ids.get(left + right);
    if (leftId === undefined || rightId === undefined || mergedId === undefined) {
      throw tokenizerFault(`merge ${rank} ("${left}" + "${right}") names a token that the vocabulary lacks`);
    }
    resolved.set([leftId, rightId, mergedId], rank * 3);
  });
  return resolved;
}

/** Real bytes of a normal token; the UTF-8 text of an added one, which is written without the byte alphabet. */
export function tokenBytes(token: string, kind: TokenKind, encoder: TextEncoder): Uint8Array {
  const bytes = kind === TokenKind.normal ? tokenTextToBytes(token) : undefined;
  return bytes ?? encoder.encode(token);
}

function tokenKind(value: number | undefined, id: number): TokenKind {
  for (const kind of Object.values(TokenKind)) if (kind === value) return kind;
  throw tokenizerFault(`GGUF: token ${id} has the unknown type ${value}`);
}

function strings(metadata: GgufMetadata, key: string): readonly string[] {
  const value = metadata.values.get(key);
  if (!isStrings(value)) throw tokenizerFault(`GGUF: ${key} is missing or not a list of strings`);
  return value;
}

function isStrings(value: GgufValue | undefined): value is readonly string[] {
  return Array.isArray(value);
}

function text(metadata: GgufMetadata, key: string): string | undefined {
  const value = metadata.values.get(key);
  return typeof value === "string" ? value : undefined;
}

function number(metadata: GgufMetadata, key: string): number | undefined {
  const value = metadata.values.get(key);
  return typeof value === "number" ? value : undefined;
}
