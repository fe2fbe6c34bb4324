import { stat } from "node:fs/promises";
import { join } from "node:path";
import { createEngine } from "../../engine/create.ts";
import { grammarTokenBytes } from "../../grammar/vocabulary.ts";
import { openTokenizer } from "../../tokenizer/node.ts";
import { type Daemon, type DaemonOptions, type DaemonVocabulary, serveDaemon } from "./server.ts";

/** A daemon around the native engine, with the vocabulary of the model's own tokenizer. Errors as `serveDaemon`. */
export function startDaemon(options: DaemonOptions): Promise<Daemon> {
  return serveDaemon(options, { createEngine, openVocabulary });
}

/** What a daemon tells of its tokenizer, and the token bytes that grammar masks are made of. Throws SluiceError. */
export async function openVocabulary(model: string): Promise<DaemonVocabulary> {
  // What is missing or unreadable is told by the tokenizer, in its own words.
  const folder = (await stat(model).catch(() => undefined))?.isDirectory() ?? false;
  // The daemon never encodes text, so it needs no cache of pieces.
  const tokenizer = await openTokenizer(folder ? `file:${join(model, "tokenizer.json")}` : `gguf:${model}`, {
    pieceCacheEntries: 0,
  });
  const { vocabulary, fingerprint } = tokenizer;
  return {
    // The same bytes that the gateway's compiler saw, or an artifact would not fit.
    tokens: Array.from({ length: vocabulary.size }, (_, id) => grammarTokenBytes(vocabulary, id)),
    stopIds: vocabulary.stopIds,
    vocabularyHash: vocabulary.vocabularyHash,
    tokenizerFingerprint: fingerprint,
  };
}
