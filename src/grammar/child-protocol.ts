import type { SchemaBudget } from "./budget.ts";
import type { GrammarPolicy, GrammarSource } from "./grammar.ts";

/** What the gateway tells a compile child (structured clone over the fork's channel). */
export type ToChild =
  | {
      readonly type: "start";
      readonly bytes: Uint8Array;
      readonly ends: Uint32Array;
      readonly stopIds: Int32Array;
      readonly vocabularyHash: string;
      readonly policy: GrammarPolicy;
      readonly budget: SchemaBudget;
      /** Resident memory above which the child ends itself. */
      readonly memoryBytes: number;
    }
  /** Front end only: the child answers `prepared` or `refused`. */
  | { readonly type: "prepare"; readonly source: GrammarSource }
  /** Compiles what was prepared last: the child answers `compiled` or `refused`. */
  | { readonly type: "compile" };

export type FromChild =
  | { readonly type: "ready" }
  | { readonly type: "prepared"; readonly hash: string }
  | { readonly type: "compiled"; readonly bytes: Uint8Array }
  | { readonly type: "refused"; readonly code: string; readonly message: string; readonly param: string | undefined };

/** The child's exit code when it passed its memory budget. */
export const OUT_OF_MEMORY_EXIT = 77;
