/** How object members may be ordered: as the schema lists them, or any order (validation runs). */
export type PropertyOrder = "schema" | "any";

export interface GrammarPolicy {
  readonly propertyOrder: PropertyOrder;
  /**
   * `compact`: one optional space after `,` and `:`; `bounded`: at most this many white-space characters in a row
   * where JSON allows them; never mandatory, so no model is forced off its own style.
   */
  readonly whitespace: { readonly kind: "compact" } | { readonly kind: "bounded"; readonly max: number };
}

export type GrammarSource =
  | { readonly kind: "json_schema"; readonly schema: unknown; readonly strict: boolean }
  | { readonly kind: "json_object" }
  | { readonly kind: "regex"; readonly pattern: string }
  | { readonly kind: "ebnf"; readonly grammar: string }
  | { readonly kind: "structural_tag"; readonly tag: unknown };

export type GrammarEngineName = "xgrammar" | "automaton";

/** Compiled, immutable, content-addressed; shipped to each daemon once. */
export interface GrammarArtifact {
  /** sha256 hex over kind, canonical source, policy, compiler version and, for XGrammar, the vocabulary hash. */
  readonly hash: string;
  readonly engine: GrammarEngineName;
  readonly bytes: Uint8Array;
}

/** Front end + cache + compile child. Throws a 400 SluiceError with path and keyword for what it cannot guarantee. */
export interface GrammarCompiler {
  compile(source: GrammarSource, signal: AbortSignal): Promise<GrammarArtifact>;
  close(): Promise<void>;
}
