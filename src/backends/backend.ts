import type { SluiceError } from "../errors.ts";
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

/** The likeliest token each time, and nothing done to the logits. */
export const greedy: Sampling = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  logitBias: [],
  bannedSequences: [],
  seed: 0,
  choice: 0,
};

/** What a text-only engine needs instead of token ids: the caller's own body after validation. */
export interface TextForm {
  readonly kind: "chat" | "completion";
  readonly body: Readonly<Record<string, unknown>>;
  /** Which of `body.prompt` this request is for, where that holds several; absent = it holds one. */
  readonly promptIndex?: number | undefined;
  /** Already sent to the caller, as text: what `generatedIds` is for a backend of tokens. Absent or "" on a first attempt. */
  readonly generated?: string | undefined;
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
  /** The engine told none: the prompt as the gateway's tokenizer counts it, one token for each piece of text that came. */
  readonly estimated?: boolean | undefined;
}

export type FinishReason = "stop" | "length";

/** A token as an engine of text tells it; `bytes` where it says them. */
export interface TextTokenLogprob {
  readonly token: string;
  readonly bytes: readonly number[] | undefined;
  readonly logprob: number;
  readonly top: ReadonlyArray<Omit<TextTokenLogprob, "top">>;
}

/** A piece of one tool call. `id` and `name` come with its first piece; `arguments` are to be joined. */
export interface ToolCallDelta {
  readonly index: number;
  readonly id?: string | undefined;
  readonly name?: string | undefined;
  readonly arguments: string;
}

/** What a backend without token ids yields instead of `tokens`; one event may hold several of the engine's. */
export interface TextEvent {
  readonly type: "text";
  /** The answer's next text; empty where the event holds only something else. */
  readonly delta: string;
  readonly toolCalls?: readonly ToolCallDelta[] | undefined;
  readonly logprobs?: readonly TextTokenLogprob[] | undefined;
  /** The model declines, in its own words: `message.refusal` of the OpenAI API. */
  readonly refusal?: string | undefined;
  /** What the model thought, where the engine tells it apart from the answer. */
  readonly reasoning?: string | undefined;
}

export type GenerationEvent =
  | TextEvent
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
      /**
       * The more exact word of an engine that reads text itself. `tool_calls` refines `stop`; `content_filter` comes with
       * `length`, so that whoever does not know it still takes the answer for incomplete.
       */
      readonly textReason?: "tool_calls" | "content_filter" | undefined;
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
  /** False = `load()` knows nothing and says zeros; absent = it tells the engine's own figures. */
  readonly reportsLoad?: boolean | undefined;
}

export interface BackendLoad {
  readonly runningRows: number;
  readonly queuedRows: number;
  readonly pendingPrefillTokens: number;
  readonly freeKvTokens: number;
}

/** `late`: it was ready when it last answered, and answers no more in time; others go first. */
export type BackendHealth =
  | { readonly ready: true; readonly late?: true }
  | { readonly ready: false; readonly reason: string };

export interface KvBlock {
  /** The engine's own, opaque; names the block in `removed` and as `parent`. */
  readonly key: string;
  readonly parent?: string | undefined;
  readonly salt: string;
  readonly tokenIds: readonly number[];
}

/** What a backend tells of its KV cache. A `snapshot` replaces all that was known; `more` = deltas that belong to it follow. */
export type KvFeedEvent =
  | {
      readonly type: "snapshot";
      readonly seq: number;
      readonly instance: string;
      readonly blocks: readonly KvBlock[];
      readonly more: boolean;
    }
  | {
      readonly type: "delta";
      readonly seq: number;
      readonly stored: readonly KvBlock[];
      readonly removed: readonly string[];
      readonly more: boolean;
    }
  | { readonly type: "heartbeat"; readonly seq: number };

/** Where a feed broke off: the last sequence number that was complete, and of which run of the backend. */
export interface KvFeedPosition {
  readonly seq: number;
  readonly instance: string;
}

/**
 * A shortcut for tokens, the one event of which a generation has hundreds. A batching engine says a token of every row at
 * once, and through iterators each costs its own chain of promises; a sink gets them in the turn in which they were read:
 *
 *   backend reads one step  ->  a.tokens([5]), b.tokens([9]), c.tokens([2])  ->  each distinct `stepEnd`, once
 *
 * Whoever answers callers may thus gather in `tokens` and write in `stepEnd`: one write a caller and step, without a timer,
 * also where several generations (`n` > 1) share one caller and hence one `stepEnd`. What lies between (deadlines, what was
 * sent) passes a sink of its own down, which does its part and calls the one above.
 */
export interface TokenSink {
  /**
   * Tokens without logprobs. Called only while the iterator's reader waits for its next event, so that the order of events
   * stays: whatever came before has been read. At any other time, and always by a backend that knows no sinks, the same
   * tokens are a `tokens` event. Aborting the generation's signal from inside is allowed; throwing ends the generation.
   */
  tokens(ids: readonly number[]): void;
  /**
   * All that came at once has been handed out, behind at least one `tokens`; also after an abort from inside one. Events of
   * the iterator (`finish`) that came with it are read later. Called once where several sinks hold the same function; must
   * not throw.
   */
  readonly stepEnd?: (() => void) | undefined;
}

/** One endpoint that generates. An adapter is the only place that knows an engine's field names. */
export interface Backend {
  /** `pool/endpoint`, stable over a configuration reload. */
  readonly id: string;
  readonly capabilities: BackendCapabilities;
  info(signal: AbortSignal): Promise<BackendInfo>;
  /**
   * Ends with exactly one `finish` or `error` event, or throws SluiceError when the connection fails or breaks.
   * Aborting `signal` cancels the generation on the engine. Tokens that came before the reader asked again may be one event.
   */
  generate(request: GenerationRequest, signal: AbortSignal, sink?: TokenSink): AsyncIterable<GenerationEvent>;
  /**
   * Why this backend cannot serve the request as asked: the `capability_missing` that `generate` would throw, without an
   * attempt. Pure. Absent = it can serve whatever passed `prepare`.
   */
  objection?(request: Pick<GenerationRequest, "text" | "sampling" | "maxNewTokens">): SluiceError | undefined;
  health(signal: AbortSignal): Promise<BackendHealth>;
  load(signal: AbortSignal): Promise<BackendLoad>;
  /** Where `capabilities.kvEvents` says so. Ends or throws when the connection breaks; call again with the last position. */
  kvEvents?(from: KvFeedPosition | undefined, signal: AbortSignal): AsyncIterable<KvFeedEvent>;
  close(): Promise<void>;
}
