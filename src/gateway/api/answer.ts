import type { FinishReason, Usage } from "../../backends/backend.ts";
import type { Vocabulary } from "../../tokenizer/vocabulary.ts";
import type { Delta } from "../answer/choice.ts";

/** What an answer says about itself, in every chunk. */
export interface AnswerHead {
  readonly id: string;
  /** Seconds since 1970. */
  readonly created: number;
  readonly model: string;
}

export type AnswerFinish = FinishReason | "tool_calls" | "content_filter";

/** A choice that is complete. */
export interface WholeChoice {
  readonly index: number;
  readonly deltas: readonly Delta[];
  readonly finish: AnswerFinish;
}

/** A streamed answer in one wire format; every method gives complete server-sent events, or nothing. */
export interface AnswerStream {
  /** Sent once, before a choice's first delta. */
  begin(index: number): string;
  delta(index: number, delta: Delta): string;
  finish(index: number, reason: AnswerFinish): string;
  usage(usage: Usage): string;
}

/** One of the two wire formats: how an answer is told, streamed or whole. */
export interface AnswerFormat {
  readonly idPrefix: string;
  stream(head: AnswerHead, vocabulary: Vocabulary, options: { readonly includeUsage: boolean }): AnswerStream;
  /** The JSON body of an answer that is sent at once. */
  whole(head: AnswerHead, vocabulary: Vocabulary, choices: readonly WholeChoice[], usage: Usage): string;
}

export const usageJson = (usage: Usage): string =>
  `{"prompt_tokens":${usage.promptTokens},"completion_tokens":${usage.completionTokens},"total_tokens":${
    usage.promptTokens + usage.completionTokens
  },"prompt_tokens_details":{"cached_tokens":${usage.cachedTokens}}}`;

/** JSON has no infinity; a token that cannot come has OpenAI's stand-in for it. */
export const logprobJson = (logprob: number): string => String(Number.isFinite(logprob) ? logprob : -9999);
