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
      /** Resident memory above which the child says `over`. */
      readonly memoryBytes: number;
      /** Processor time that one job may take, milliseconds; above it the child says `over`. */
      readonly cpuMs: number;
    }
  /** Front end only: the child answers `prepared` or `refused`. */
  | { readonly type: "prepare"; readonly source: GrammarSource }
  /** Compiles what was prepared last: the child answers `compiled` or `refused`. */
  | { readonly type: "compile" };

export type FromChild =
  | { readonly type: "ready" }
  | { readonly type: "prepared"; readonly hash: string }
  | { readonly type: "compiled"; readonly bytes: Uint8Array }
  /** The job is over its budget. The parent kills the child: by itself it could not end before its native threads do. */
  | { readonly type: "over"; readonly budget: "time" | "memory" }
  | { readonly type: "refused"; readonly code: string; readonly message: string; readonly param: string | undefined };
