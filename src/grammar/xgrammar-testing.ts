// Test helpers: the real compiler and matcher inside the test's process, over a byte vocabulary or a model's own.
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { DEFAULT_SCHEMA_BUDGET } from "./budget.ts";
import type { GrammarPolicy, GrammarSource } from "./grammar.ts";
import { DEFAULT_POLICY } from "./policy.ts";
import { prepareGrammar } from "./prepare.ts";
import type { GrammarVocabulary } from "./vocabulary.ts";

export interface TestMatcher {
  accept(token: number): boolean;
  fillMask(mask: Uint32Array): boolean;
  terminated(): boolean;
  completed(): boolean;
  rollback(count: number): void;
}

interface Addon {
  readonly Compiler: new (
    bytes: Uint8Array,
    ends: Uint32Array,
    stopIds: Int32Array,
  ) => {
    compile(kind: string, text: string): Promise<{ readonly bytes: Uint8Array; readonly warnings: readonly string[] }>;
  };
  readonly Engine: new (
    bytes: Uint8Array,
    ends: Uint32Array,
    stopIds: Int32Array,
  ) => { load(bytes: Uint8Array): void; matcher(): TestMatcher };
}

const addon: Addon = createRequire(import.meta.url)(
  fileURLToPath(new URL("../../native/build/sluice_grammar.node", import.meta.url)),
);

/** Every byte is a token (its id is its value), and 256 ends. */
export function byteVocabulary(): GrammarVocabulary {
  return {
    bytes: Uint8Array.from({ length: 256 }, (_, i) => i),
    ends: Uint32Array.from({ length: 257 }, (_, i) => Math.min(i + 1, 256)),
    stopIds: Int32Array.of(256),
    hash: "bytes",
  };
}

/** What became of a text: the whole is allowed and may end, is allowed but may not end here, or stops at this token. */
export type Verdict = "complete" | "incomplete" | { readonly stoppedAt: number };

export class GrammarBench {
  private readonly compiler: InstanceType<Addon["Compiler"]>;
  private readonly engine: InstanceType<Addon["Engine"]>;
  private readonly stopId: number;
  private loaded: Uint8Array | undefined;
  readonly vocabularySize: number;

  constructor(vocabulary: GrammarVocabulary) {
    const { bytes, ends, stopIds } = vocabulary;
    this.compiler = new addon.Compiler(bytes, ends, stopIds);
    this.engine = new addon.Engine(bytes, ends, stopIds);
    this.vocabularySize = ends.length;
    this.stopId = stopIds[0] ?? -1;
  }

  /** Compiles XGrammar's own source text. Rejects with the core's message; warnings are an error as well. */
  async compileText(kind: string, text: string): Promise<Uint8Array> {
    const { bytes, warnings } = await this.compiler.compile(kind, text);
    if (warnings.length > 0) throw new Error(`warned: ${warnings.join(" ")}`);
    return bytes;
  }

  async compile(source: GrammarSource, policy: GrammarPolicy = DEFAULT_POLICY): Promise<Uint8Array> {
    const { kind, text } = prepareGrammar(source, policy, DEFAULT_SCHEMA_BUDGET);
    return this.compileText(kind, text);
  }

  matcher(artifact: Uint8Array): TestMatcher {
    if (this.loaded !== artifact) this.engine.load(artifact);
    this.loaded = artifact;
    return this.engine.matcher();
  }

  allows(mask: Uint32Array, token: number): boolean {
    return (((mask[token >>> 5] ?? 0) >>> (token & 31)) & 1) === 1;
  }

  /** Follows the tokens one by one; the mask must say before each what `accept` then does. */
  follow(artifact: Uint8Array, tokens: readonly number[]): Verdict {
    const matcher = this.matcher(artifact);
    const mask = new Uint32Array(Math.ceil(this.vocabularySize / 32));
    for (const [i, token] of tokens.entries()) {
      const constrained = matcher.fillMask(mask);
      const allowed = !constrained || this.allows(mask, token);
      if (matcher.accept(token) !== allowed) throw new Error(`mask and matcher disagree on token ${token} at ${i}`);
      if (!allowed) return { stoppedAt: i };
    }
    matcher.fillMask(mask);
    return this.allows(mask, this.stopId) ? "complete" : "incomplete";
  }

  /** Byte vocabulary only: is this text a whole answer? */
  matches(artifact: Uint8Array, text: string): boolean {
    return this.follow(artifact, [...new TextEncoder().encode(text)]) === "complete";
  }
}
