import { definitionFromGguf } from "./from-gguf.ts";
import { definitionFromTokenizerJson, type TokenizerJsonFiles } from "./from-tokenizer-json.ts";
import type { ReadAt } from "./gguf-metadata.ts";
import { createTokenizer, type Tokenizer, type TokenizerOptions } from "./tokenizer.ts";

export type { ChatMessage, ContentPart, ToolCall, ToolDefinition } from "./chat-messages.ts";
export type { ChatInput } from "./chat-template.ts";
export type { ReadAt } from "./gguf-metadata.ts";
export type { StreamDecoder } from "./stream-decode.ts";
export type { ToolCallTags } from "./tool-prompt.ts";
export type { Tokenizer, TokenizerOptions } from "./tokenizer.ts";
export { TokenKind, type Vocabulary } from "./vocabulary.ts";

/** Where a tokenizer comes from. Reading bytes is the caller's, since it differs between Node and Workers. */
export type TokenizerSource =
  | { readonly kind: "gguf"; readonly readAt: ReadAt }
  | ({ readonly kind: "tokenizer.json" } & TokenizerJsonFiles);

/**
 * Loads a tokenizer from a GGUF's metadata or from HF's tokenizer.json. Throws SluiceError `bad_tokenizer_file`.
 *
 *     const tokenizer = await loadTokenizer({ kind: "gguf", readAt });
 *     const ids = tokenizer.encodeChat({ messages: [{ role: "user", content: "Hi" }], addGenerationPrompt: true });
 */
export async function loadTokenizer(source: TokenizerSource, options?: TokenizerOptions): Promise<Tokenizer> {
  const definition =
    source.kind === "gguf" ? await definitionFromGguf(source.readAt) : definitionFromTokenizerJson(source);
  return createTokenizer(definition, options);
}
