import { z } from "zod";
import type { Normalization } from "./bpe.ts";
import type { AddedToken, TokenizerDefinition } from "./definition.ts";
import { tokenizerFault } from "./fault.ts";
import { resolveMerges, tokenBytes } from "./from-gguf.ts";
import type { PreTokenizer, PreTokenizerStage, SplitBehavior } from "./pre-tokenizer.ts";
import { endsTurn } from "./stop-tokens.ts";
import { TokenKind, type VocabularyEntry } from "./vocabulary.ts";

/** The texts of HF's files; only the first is needed to encode. */
export interface TokenizerJsonFiles {
  /** `tokenizer.json` */
  readonly tokenizer: string;
  /** `tokenizer_config.json`: chat template, eos and bos token. */
  readonly config?: string | undefined;
  /** `generation_config.json`: more end tokens. */
  readonly generationConfig?: string | undefined;
  /** `chat_template.jinja`, which newer repositories have instead of the config's field. */
  readonly chatTemplate?: string | undefined;
}

const addedTokenSchema = z.object({
  id: z.number().int().nonnegative(),
  content: z.string().min(1),
  special: z.boolean(),
  lstrip: z.boolean().default(false),
  rstrip: z.boolean().default(false),
  single_word: z.boolean().default(false),
});

/** Vocabulary and merges hold hundreds of thousands of members: they are checked in loops of their own. */
const fileSchema = z.object({
  added_tokens: z.array(addedTokenSchema).default([]),
  normalizer: z.unknown(),
  pre_tokenizer: z.unknown(),
  decoder: z.unknown(),
  model: z.object({
    type: z.literal("BPE").optional(),
    dropout: z.number().nullish(),
    continuing_subword_prefix: z.string().nullish(),
    end_of_word_suffix: z.string().nullish(),
    byte_fallback: z.boolean().nullish(),
    ignore_merges: z.boolean().nullish(),
    vocab: z.unknown(),
    merges: z.unknown(),
  }),
});

const namedTokenSchema = z.union([z.string(), z.object({ content: z.string() }).transform((token) => token.content)]);
const configSchema = z.looseObject({
  chat_template: z.union([z.string(), z.array(z.object({ name: z.string(), template: z.string() }))]).nullish(),
  add_bos_token: z.boolean().nullish(),
  bos_token: namedTokenSchema.nullish(),
  eos_token: namedTokenSchema.nullish(),
  unk_token: namedTokenSchema.nullish(),
  pad_token: namedTokenSchema.nullish(),
  model_max_length: z.number().nullish(),
});
type TokenizerConfig = z.output<typeof configSchema>;

const generationSchema = z.looseObject({
  eos_token_id: z.union([z.number().int(), z.array(z.number().int())]).nullish(),
});

/** `model_max_length` is 10^30 where nobody set it. */
const PLAUSIBLE_CONTEXT = 1e9;

/** Reads HF's files. Throws SluiceError `bad_tokenizer_file` naming the part that is wrong or not supported. */
export function definitionFromTokenizerJson(files: TokenizerJsonFiles): TokenizerDefinition {
  const file = parseWith(fileSchema, files.tokenizer, "tokenizer.json");
  const config = files.config === undefined ? {} : parseWith(configSchema, files.config, "tokenizer_config.json");
  const generation =
    files.generationConfig === undefined
      ? {}
      : parseWith(generationSchema, files.generationConfig, "generation_config.json");
  const { model } = file;
  if (model.dropout) throw unsupported("model.dropout");
  if (model.continuing_subword_prefix) throw unsupported("model.continuing_subword_prefix");
  if (model.end_of_word_suffix) throw unsupported("model.end_of_word_suffix");
  if (model.byte_fallback) throw unsupported("model.byte_fallback (SentencePiece)");

  const tokens = readVocabulary(model.vocab);
  const added = file.added_tokens.map((token): AddedToken => {
    if (token.single_word) throw unsupported(`added token "${token.content}" with single_word`);
    tokens[token.id] = token.content;
    return { id: token.id, text: token.content, stripLeft: token.lstrip, stripRight: token.rstrip };
  });
  const kinds = new Map<number, TokenKind>(
    file.added_tokens.map((token) => [token.id, token.special ? TokenKind.control : TokenKind.userDefined]),
  );
  const encoder = new TextEncoder();
  const entries = Array.from(tokens, (token, id): VocabularyEntry => {
    if (token === undefined) return { kind: TokenKind.unused, bytes: new Uint8Array(0) };
    const kind = kinds.get(id) ?? TokenKind.normal;
    return { kind, bytes: tokenBytes(token, kind, encoder) };
  });

  const idOf = (text: string | null | undefined): number | undefined => added.find((token) => token.text === text)?.id;
  const eosId = idOf(config.eos_token);
  const bosId = idOf(config.bos_token);
  const generationEnds = [generation.eos_token_id ?? []].flat();
  const conventionalEnds = added.filter((token) => kinds.get(token.id) === TokenKind.control && endsTurn(token.text));
  const context = config.model_max_length ?? Number.POSITIVE_INFINITY;
  return {
    entries,
    addedTokens: added,
    merges: resolveMerges(readMerges(model.merges), tokens),
    preTokenizer: readPreTokenizer(file.pre_tokenizer),
    normalization: readNormalizer(file.normalizer),
    ignoreMerges: model.ignore_merges ?? false,
    stopIds: [...(eosId === undefined ? [] : [eosId]), ...generationEnds, ...conventionalEnds.map((token) => token.id)],
    bosId,
    eosId,
    addBos: config.add_bos_token ?? false,
    chatTemplate: files.chatTemplate ?? chatTemplateOf(config),
    templateTokens: templateTokens(config),
    contextLength: context < PLAUSIBLE_CONTEXT ? context : undefined,
  };
}

/** Some repositories list several templates; the one named `default` is for chats. */
function chatTemplateOf(config: TokenizerConfig): string | undefined {
  const template = config.chat_template ?? undefined;
  return Array.isArray(template) ? template.find((entry) => entry.name === "default")?.template : template;
}

function templateTokens(config: TokenizerConfig): Record<string, string> {
  const named: Record<string, string> = {};
  for (const name of ["bos_token", "eos_token", "unk_token", "pad_token"] as const) {
    const text = config[name];
    if (typeof text === "string") named[name] = text;
  }
  return named;
}

function parseWith<Schema extends z.ZodType>(schema: Schema, text: string, file: string): z.output<Schema> {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw tokenizerFault(`${file} is not JSON`, error);
  }
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw tokenizerFault(`${file}: ${issue?.path.join(".") ?? ""}: ${issue?.message ?? "not as expected"}`, parsed.error);
}

/** Tokens by id; ids that no token has stay undefined. */
function readVocabulary(value: unknown): (string | undefined)[] {
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw unsupported("model.vocab that is no object");
  const tokens: (string | undefined)[] = [];
  for (const [token, id] of Object.entries(value)) {
    if (typeof id !== "number" || !Number.isInteger(id) || id < 0 || id > 1 << 24) {
      throw tokenizerFault(`tokenizer.json: the id of "${token}" is not an index`);
    }
    tokens[id] = token;
  }
  return tokens;
}

/** `"left right"` in older files, `["left", "right"]` in newer ones. */
function readMerges(value: unknown): (string | readonly [string, string])[] {
  if (!Array.isArray(value)) throw tokenizerFault("tokenizer.json: model.merges is no list");
  return value.map((merge: unknown, rank): string | readonly [string, string] => {
    if (typeof merge === "string") return merge;
    if (Array.isArray(merge) && merge.length === 2) {
      const [left, right]: unknown[] = merge;
      if (typeof left === "string" && typeof right === "string") return [left, right];
    }
    throw tokenizerFault(`tokenizer.json: merge ${rank} is neither text nor a pair of texts`);
  });
}

const typedSchema = z.looseObject({ type: z.string() });
const sequenceSchema = z.object({ pretokenizers: z.array(z.unknown()) });
const byteLevelSchema = z.object({ add_prefix_space: z.boolean().default(true), use_regex: z.boolean().default(true) });
const digitsSchema = z.object({ individual_digits: z.boolean().default(false) });
const splitSchema = z.object({
  pattern: z.union([z.object({ Regex: z.string() }), z.object({ String: z.string() })]),
  behavior: z.enum(["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]),
  invert: z.boolean().default(false),
});
const BEHAVIORS: Readonly<Record<z.output<typeof splitSchema>["behavior"], SplitBehavior>> = {
  Removed: "removed",
  Isolated: "isolated",
  MergedWithPrevious: "mergedWithPrevious",
  MergedWithNext: "mergedWithNext",
  Contiguous: "contiguous",
};

function readPreTokenizer(value: unknown): PreTokenizer {
  const { type } = checked(typedSchema, value, "pre_tokenizer");
  if (type === "Sequence")
    return checked(sequenceSchema, value, "pre_tokenizer").pretokenizers.flatMap(readPreTokenizer);
  return [readStage(type, value)];
}

function readStage(type: string, value: unknown): PreTokenizerStage {
  switch (type) {
    case "ByteLevel": {
      const stage = checked(byteLevelSchema, value, "pre_tokenizer");
      return { kind: "byteLevel", addPrefixSpace: stage.add_prefix_space, useRegex: stage.use_regex };
    }
    case "Digits":
      return { kind: "digits", individual: checked(digitsSchema, value, "pre_tokenizer").individual_digits };
    case "Split": {
      const { pattern, behavior, invert } = checked(splitSchema, value, "pre_tokenizer");
      const common = { behavior: BEHAVIORS[behavior], invert };
      return "Regex" in pattern
        ? { kind: "split", pattern: pattern.Regex, ...common }
        : { kind: "splitLiteral", literal: pattern.String, ...common };
    }
    default:
      throw unsupported(`pre_tokenizer ${type}`);
  }
}

function readNormalizer(value: unknown): Normalization {
  if (value === null || value === undefined) return "none";
  const { type, normalizers } = checked(
    typedSchema.extend({ normalizers: z.array(z.unknown()).optional() }),
    value,
    "normalizer",
  );
  if (type === "NFC" || type === "NFD" || type === "NFKC" || type === "NFKD") return type;
  if (type === "Sequence" && normalizers !== undefined && normalizers.length <= 1)
    return readNormalizer(normalizers[0]);
  throw unsupported(`normalizer ${type}`);
}

function checked<Schema extends z.ZodType>(schema: Schema, value: unknown, where: string): z.output<Schema> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw tokenizerFault(
    `tokenizer.json: ${where}: ${parsed.error.issues[0]?.message ?? "not as expected"}`,
    parsed.error,
  );
}

function unsupported(what: string): Error {
  return tokenizerFault(`tokenizer.json: ${what} is not supported; byte-level BPE is`);
}
