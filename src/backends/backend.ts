import type { GrammarArtifact, GrammarSource } from "../grammar/grammar.ts";

/** Order of application: penalties, bias, bans, grammar mask, temperature, top-k, top-p, min-p (DESIGN section 4). */
export interface Sampling {
  /** 0 = greedy. */
  readonly temperature: number;
  /** 0 = off. */
  readonly topK: number;
  /** 1 = off. */
  readonly topP: number;
  /** 0 = off. */
  readonly minP: number;
  /** 1 = off; over prompt + output. */
  readonly repetitionPenalty: number;
  /** 0 = off; over the output only. */
  readonly presencePenalty: number;
  /** 0 = off; over the output only. */
  readonly frequencyPenalty: number;
  readonly logitBias: ReadonlyArray<readonly [token: number, bias: number]>;
  /** Token sequences that may not appear; the last token of one is banned where the rest has been produced. */
  readonly bannedSequences: ReadonlyArray<readonly number[]>;
  /** With `choice` and the position it keys the random draw, so an answer can be repeated and resumed. */
  readonly seed: number;
  /** Index among the caller's `n`. */
  readonly choice: number;
}

/** What a text-only engine needs instead of token ids: the caller's own body after validation. */
export interface TextForm {
  readonly kind: "chat" | "completion";
  readonly body: Readonly<Record<string, unknown>>;
}

export interface GenerationRequest {
  /** Unique for an attempt; the gateway's request id plus the attempt. */
  readonly id: string;
  readonly model: string;
  readonly promptIds: Uint32Array;
  /** Already sent to the caller: counts for output penalties, position, random draws and grammar. Empty on a first attempt. */
  readonly generatedIds: Uint32Array;
  readonly maxNewTokens: number;
  readonly sampling: Sampling;
  /** Tokens that end the answer; never part of the output. */
  readonly stopIds: readonly number[];
  readonly grammar: { readonly artifact: GrammarArtifact; readonly source: GrammarSource } | undefined;
  /** undefined = none; 0 = the sampled token's only; k = the k most likely as well. Taken from the raw logits. */
  readonly logprobs: number | undefined;
  /** Cache salt: prefixes are shared only under an equal salt. */
  readonly salt: string;
  /** Higher goes first. */
  readonly priority: number;
  /** Milliseconds left, counted from the moment the backend reads it. */
  readonly deadlineMs: number;
  readonly traceparent: string | undefined;
  readonly text: TextForm;
}

export interface TokenLogprob {
  readonly logprob: number;
  readonly top: ReadonlyArray<readonly [token: number, logprob: number]>;
}

export interface Usage {
  readonly promptTokens: number;
  /** Part of `promptTokens` that came out of the KV cache. */
  readonly cachedTokens: number;
  /** Sampled tokens, the ending stop token included. */
  readonly completionTokens: number;
}

export type FinishReason = "stop" | "length";

export type GenerationEvent =
  | { readonly type: "accepted"; readonly cachedTokens: number }
  | { readonly type: "progress"; readonly prefilled: number }
  | {
      readonly type: "tokens";
      readonly ids: readonly number[];
      readonly logprobs?: readonly TokenLogprob[] | undefined;
    }
  | {
      readonly type: "finish";
      readonly reason: FinishReason;
      readonly usage: Usage;
      readonly timings?: StepTimings | undefined;
    }
  | { readonly type: "error"; readonly code: string; readonly message: string; readonly retryable: boolean };

/** Where a generation's time went inside the backend, milliseconds; goes into spans. */
export interface StepTimings {
  readonly queuedMs: number;
  readonly prefillMs: number;
  readonly decodeMs: number;
  readonly steps: number;
  readonly maskMs: number;
}

export interface BackendInfo {
  readonly model: string;
  readonly vocabularyHash: string;
  readonly tokenizerFingerprint: string;
  readonly blockSize: number;
  readonly contextLength: number;
  readonly kvTokens: number;
  readonly maxRows: number;
}

export interface BackendCapabilities {
  readonly tokenIds: boolean;
  readonly structuredOutput: ReadonlyArray<GrammarSource["kind"]>;
  readonly kvEvents: boolean;
  readonly prefillDecodeSplit: boolean;
  readonly sleep: boolean;
  readonly priority: boolean;
  readonly cacheSalt: boolean;
  readonly abort: boolean;
  readonly assistantPrefill: boolean;
}

export interface BackendLoad {
  readonly runningRows: number;
  readonly queuedRows: number;
  readonly pendingPrefillTokens: number;
  readonly freeKvTokens: number;
}

export type BackendHealth = { readonly ready: true } | { readonly ready: false; readonly reason: string };

/** One endpoint that generates. An adapter is the only place that knows an engine's field names. */
export interface Backend {
  /** `pool/endpoint`, stable over a configuration reload. */
  readonly id: string;
  readonly capabilities: BackendCapabilities;
  info(signal: AbortSignal): Promise<BackendInfo>;
  /**
   * Ends with exactly one `finish` or `error` event, or throws SluiceError when the connection fails or breaks.
   * Aborting `signal` cancels the generation on the engine.
   */
  generate(request: GenerationRequest, signal: AbortSignal): AsyncIterable<GenerationEvent>;
  health(signal: AbortSignal): Promise<BackendHealth>;
  load(signal: AbortSignal): Promise<BackendLoad>;
  close(): Promise<void>;
}
