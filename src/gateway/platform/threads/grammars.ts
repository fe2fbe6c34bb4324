import { LRUCache } from "lru-cache";
import { invalidRequest } from "../../../errors.ts";
import type { GrammarArtifact, GrammarCompiler, GrammarSource } from "../../../grammar/grammar.ts";
import { SCHEMA_PARAM } from "../../../grammar/refusal.ts";

export interface RemoteGrammarsOptions {
  /** Asks the main thread, whose compiler, cache and single flight are all threads'. `source` is JSON. */
  readonly ask: (source: string, signal: AbortSignal) => Promise<GrammarArtifact>;
  /** Artifacts kept here, so that a schema in use costs one question a thread. */
  readonly cacheBytes: number;
}

/** The grammar compiler of a thread that has none. */
export function createRemoteGrammars({ ask, cacheBytes }: RemoteGrammarsOptions): GrammarCompiler {
  const known = new LRUCache<string, GrammarArtifact>({
    maxSize: Math.max(1, Math.floor(cacheBytes)),
    sizeCalculation: (artifact, source) => artifact.bytes.byteLength + 2 * source.length + 256,
  });
  return {
    async compile(source: GrammarSource, signal: AbortSignal): Promise<GrammarArtifact> {
      signal.throwIfAborted();
      const text = asJson(source);
      const cached = known.get(text);
      if (cached !== undefined) return cached;
      const artifact = await ask(text, signal);
      known.set(text, artifact);
      return artifact;
    },
    async close() {},
  };
}

function asJson(source: GrammarSource): string {
  try {
    return JSON.stringify(source);
  } catch {
    throw invalidRequest("schema_too_complex", "The schema nests too deeply.", SCHEMA_PARAM);
  }
}
