import type { FinishReason, Sampling, StepTimings, TokenLogprob, Usage } from "../backends/backend.ts";

/** The typed face of `sluice_engine.node`: no logic. Token ids only. */

export interface EngineOptions {
  /** `.gguf` file or a folder with config.json and *.safetensors. */
  readonly model: string;
  readonly precision: "fast" | "exact";
  readonly threads: number;
  /** KV cache size in tokens; rounded down to blocks of 16. */
  readonly kvTokens: number;
  readonly maxRows: number;
  /** Upper bound of new tokens in a step; the engine shortens steps further to keep one under 50 ms on a CPU. */
  readonly maxStepTokens: number;
  readonly maxQueued: number;
  /** Bytes of each token in id order (empty for special tokens); needed for grammar masks. */
  readonly vocabulary: { readonly tokens: readonly Uint8Array[]; readonly stopIds: readonly number[] };
  readonly grammarCacheBytes: number;
}

export interface EngineInfo {
  readonly model: string;
  readonly architecture: string;
  readonly vocabularySize: number;
  readonly contextLength: number;
  readonly blockSize: number;
  readonly kvTokens: number;
  readonly maxRows: number;
  readonly parameters: number;
  readonly weightBytes: number;
}

export interface EngineRequest {
  readonly promptIds: Uint32Array;
  readonly generatedIds: Uint32Array;
  /** To be sampled by this submit; `generatedIds` do not count. */
  readonly maxNewTokens: number;
  readonly sampling: Sampling;
  readonly stopIds: readonly number[];
  /** Hash of a grammar loaded before; undefined = unconstrained. */
  readonly grammar: string | undefined;
  readonly logprobs: number | undefined;
  readonly salt: string;
  readonly priority: number;
  readonly deadlineMs: number;
}

/** Codes a submit may be refused with; `queue_full` and `kv_exhausted` are retryable elsewhere. */
export type EngineRefusal =
  | "queue_full"
  | "prompt_too_long"
  | "kv_too_small"
  | "grammar_missing"
  | "draining"
  | "engine_failed";

export type EngineEvent =
  | { readonly type: "accepted"; readonly id: number; readonly cachedTokens: number }
  | { readonly type: "progress"; readonly id: number; readonly prefilled: number }
  | {
      readonly type: "tokens";
      readonly id: number;
      readonly ids: readonly number[];
      readonly logprobs: readonly TokenLogprob[] | undefined;
    }
  | {
      readonly type: "finish";
      readonly id: number;
      readonly reason: FinishReason;
      readonly usage: Usage;
      readonly timings: StepTimings;
    }
  | {
      readonly type: "error";
      readonly id: number;
      readonly code: string;
      readonly message: string;
      readonly retryable: boolean;
    };

export interface KvDelta {
  readonly seq: number;
  /** Keys are 64-bit hashes as 16 hex digits; `parent` is undefined for a first block. */
  readonly stored: ReadonlyArray<{
    readonly key: string;
    readonly parent: string | undefined;
    readonly salt: string;
    readonly tokenIds: readonly number[];
  }>;
  readonly removed: readonly string[];
}

/** Milliseconds: `counts[i]` values lie below `boundsMs[i]`, the last count holds everything above. */
export interface Histogram {
  readonly count: number;
  readonly totalMs: number;
  readonly maxMs: number;
  readonly boundsMs: readonly number[];
  readonly counts: readonly number[];
}

export interface EngineStats {
  readonly runningRows: number;
  readonly queuedRows: number;
  readonly pendingPrefillTokens: number;
  readonly blocks: { readonly total: number; readonly free: number; readonly cached: number; readonly leased: number };
  readonly steps: number;
  readonly generatedTokens: number;
  readonly prefilledTokens: number;
  /** Of the prompts' tokens those that came out of the KV cache. */
  readonly cachedTokens?: number;
  readonly stepMsTotal: number;
  readonly stepMsMax: number;
  readonly stepHistogram?: Histogram;
  readonly masks: { readonly count: number; readonly totalMs: number; readonly maxMs: number } & Partial<Histogram>;
  /** Milliseconds since the last finished step while there is work; 0 when idle. */
  readonly stalledMs: number;
  readonly healthy: boolean;
}

export interface Engine {
  readonly info: EngineInfo;
  /**
   * Returns the generation's id, or why it was refused. Events for it come later, never from inside this call.
   * Throws a 400 SluiceError for a token outside the vocabulary, an empty prompt or a parameter outside its range.
   */
  submit(
    request: EngineRequest,
  ): { readonly id: number } | { readonly refused: EngineRefusal; readonly message: string };
  /** At any moment; unknown ids are ignored. No event follows. The row is free at the end of the running step. */
  cancel(id: number): void;
  hasGrammar(hash: string): boolean;
  /** Off the JavaScript thread. Rejects with a plain message on bytes that are no artifact of this version and vocabulary. */
  loadGrammar(hash: string, bytes: Uint8Array): Promise<void>;
  /** Deltas after `seq`; undefined when the ring no longer reaches back that far (take a snapshot). */
  kvEvents(seq: number): readonly KvDelta[] | undefined;
  /** All cached blocks, parents first, as of `seq`. */
  kvSnapshot(): KvDelta;
  stats(): EngineStats;
  /** free + cached + leased = total and all reference counts right; exact when idle. */
  integrity(): { readonly ok: boolean; readonly detail: string };
  /** Stops accepting, lets running rows finish within `timeoutMs`, then cancels the rest. */
  drain(timeoutMs: number): Promise<void>;
  close(): Promise<void>;
}

export interface EngineCallbacks {
  /** One call for all events of a step. */
  readonly onEvents: (events: readonly EngineEvent[]) => void;
  readonly onLoadProgress?: (fraction: number) => void;
  /** Something changed in the KV cache; coalesced. */
  readonly onKvChange?: () => void;
}

export type CreateEngine = (options: EngineOptions, callbacks: EngineCallbacks) => Promise<Engine>;
