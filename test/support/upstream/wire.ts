/** What an OpenAI-compatible endpoint sends, byte for byte as such endpoints send it, for the answers of the mock upstream. */

/** The one answer of every healthy model: sixty words, so that an answer that was cut can be told from a whole one. */
export const canonicalAnswer =
  "A gateway is judged on its worst day: a backend falls silent, a socket breaks in the middle of a word, a " +
  "limit is reached, a queue runs full. What the caller then sees should be either the whole answer, unchanged and " +
  "sent once, or one clear error that says what happened and whether trying it again can help anyone.";

/** A word with the space before it, as most tokenizers cut. */
export function tokensOfText(text: string): string[] {
  return text.match(/\s*\S+/g) ?? [];
}

export interface Wire {
  readonly kind: "chat" | "completion";
  readonly id: string;
  readonly model: string;
  /** Alternatives for each token, 0 = only its own; undefined = no log probabilities. */
  readonly logprobs: number | undefined;
  /** `usage: null` in every chunk, as OpenAI does where usage is asked for. */
  readonly includeUsage: boolean;
}

export interface WireUsage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  readonly prompt_tokens_details: { readonly cached_tokens: number };
}

export interface WireDelta {
  readonly role?: "assistant";
  readonly content?: string | null;
  readonly tool_calls?: readonly unknown[];
}

const created = 1_790_000_000;

/** One chunk of a stream as an object. */
export function chunk(wire: Wire, delta: WireDelta, finish: string | null, usage?: WireUsage): Record<string, unknown> {
  const text = delta.content ?? "";
  const choice =
    wire.kind === "chat"
      ? { index: 0, delta, logprobs: chatLogprobs(wire, text), finish_reason: finish }
      : { index: 0, text, logprobs: completionLogprobs(wire, text), finish_reason: finish };
  return { ...head(wire, true), choices: [choice], ...usageField(wire, usage) };
}

export function usageChunk(wire: Wire, usage: WireUsage): Record<string, unknown> {
  return { ...head(wire, true), choices: [], usage };
}

/** A whole answer that was not streamed. */
export function whole(wire: Wire, text: string, finish: string, usage: WireUsage): Record<string, unknown> {
  const choice =
    wire.kind === "chat"
      ? {
          index: 0,
          message: { role: "assistant", content: text, refusal: null },
          logprobs: chatLogprobs(wire, text),
          finish_reason: finish,
        }
      : { index: 0, text, logprobs: completionLogprobs(wire, text), finish_reason: finish };
  return { ...head(wire, false), choices: [choice], usage };
}

export const sse = (value: unknown): string => `data: ${JSON.stringify(value)}\n\n`;
export const doneEvent = "data: [DONE]\n\n";

export function usageFor(promptTokens: number, completionTokens: number): WireUsage {
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
    prompt_tokens_details: { cached_tokens: Math.floor(promptTokens / 2) },
  };
}

export interface WireError {
  readonly message: string;
  readonly type: string;
  readonly code: string | number | null;
  readonly param?: string | null;
}

export const errorBody = (error: WireError) => ({ error: { param: null, ...error } });

function head({ kind, id, model }: Wire, streamed: boolean): Record<string, unknown> {
  const chatObject = streamed ? "chat.completion.chunk" : "chat.completion";
  return {
    id,
    object: kind === "chat" ? chatObject : "text_completion",
    created,
    model,
    system_fingerprint: "fp_mock",
  };
}

function usageField({ includeUsage }: Wire, usage: WireUsage | undefined): Record<string, unknown> {
  if (usage !== undefined) return { usage };
  return includeUsage ? { usage: null } : {};
}

/** Any fixed figure will do; it depends on the token so that a mix-up shows. */
const logprobOf = (token: string): number => -token.length / 8;

function alternatives(token: string, count: number): string[] {
  return Array.from({ length: count }, (_, index) => (index === 0 ? token : `${token}${index}`));
}

function chatLogprobs({ logprobs }: Wire, text: string): unknown {
  if (logprobs === undefined || text === "") return null;
  const entry = (token: string) => ({ token, logprob: logprobOf(token), bytes: [...new TextEncoder().encode(token)] });
  const content = tokensOfText(text).map((token) => ({
    ...entry(token),
    top_logprobs: alternatives(token, logprobs).map(entry),
  }));
  return { content, refusal: null };
}

function completionLogprobs({ logprobs }: Wire, text: string): unknown {
  if (logprobs === undefined || text === "") return null;
  const tokens = tokensOfText(text);
  return {
    tokens,
    token_logprobs: tokens.map(logprobOf),
    top_logprobs: tokens.map((token) =>
      Object.fromEntries(alternatives(token, logprobs).map((each) => [each, logprobOf(each)])),
    ),
    text_offset: tokens.map((_, index) => tokens.slice(0, index).join("").length),
  };
}
