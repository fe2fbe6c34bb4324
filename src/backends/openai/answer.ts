import { SluiceError } from "../../errors.ts";
import type { FinishReason, GenerationEvent, TextEvent, TextTokenLogprob, ToolCallDelta, Usage } from "../backend.ts";
import { broken } from "../ndjson.ts";
import { type FaultContext, inBandFault, readFault } from "./fault.ts";
import { type Fields, list, record } from "./json.ts";
import type { SseEvent } from "./sse.ts";

type Finish = Extract<GenerationEvent, { type: "finish" }>;

export interface AnswerOptions {
  /** They were asked for, so text without them is not the answer. */
  readonly logprobs: boolean;
  /** Prompt tokens as the gateway counts them; for an upstream that tells no usage. */
  readonly promptTokens: number;
  readonly fault: FaultContext;
}

const finishes: Readonly<Record<string, { reason: FinishReason; textReason?: "tool_calls" | "content_filter" }>> = {
  stop: { reason: "stop" },
  length: { reason: "length" },
  tool_calls: { reason: "stop", textReason: "tool_calls" },
  function_call: { reason: "stop", textReason: "tool_calls" },
  content_filter: { reason: "length", textReason: "content_filter" },
  // Engines that hand on their own names: TGI, and proxies before other APIs.
  eos_token: { reason: "stop" },
  stop_sequence: { reason: "stop" },
  end_turn: { reason: "stop" },
  max_tokens: { reason: "length" },
};

/**
 * The chunks of one streamed answer -> what it holds. Text gathers until `drain`, so that a burst is one event. Strict: a
 * chunk that cannot be understood might have held a part of the answer, so it breaks the answer. Throws SluiceError.
 */
export class AnswerReader {
  readonly #options: AnswerOptions;
  #text = "";
  #refusal = "";
  #reasoning = "";
  #toolCalls: ToolCallDelta[] = [];
  #logprobs: TextTokenLogprob[] = [];
  #calls = 0;
  #pieces = 0;
  #finish: (typeof finishes)[string] | undefined;
  #usage: Usage | undefined;
  /** Usage came with or after the finish, so it is the last word on it. */
  #settled = false;
  #done = false;

  constructor(options: AnswerOptions) {
    this.#options = options;
  }

  /** The upstream has given a `finish_reason`: the answer is whole, whatever becomes of the connection. */
  get finished(): boolean {
    return this.#finish !== undefined;
  }

  /** Nothing more is to come that matters. */
  get complete(): boolean {
    return this.#done || (this.finished && this.#settled);
  }

  take({ event, data }: SseEvent): void {
    if (this.#done) return;
    if (data === "[DONE]") {
      this.#done = true;
      return;
    }
    const chunk = record(parsed(data));
    if (chunk === undefined) throw broken("an event is not a JSON object");
    const fault = event === "error" || this.#tellsError(chunk) ? readFault(chunk) : undefined;
    if (fault !== undefined || event === "error") {
      throw fault === undefined ? broken("it reports an error") : inBandFault(fault, this.#options.fault);
    }
    const { choices, usage } = chunk;
    if (choices !== undefined && choices !== null) this.#choices(choices);
    const told = usageOf(record(usage));
    if (told !== undefined) {
      this.#usage = told;
      // Engines that tell a running count tell it in every chunk; the one that ends the answer has the sum.
      if (this.finished) this.#settled = true;
    }
  }

  /** What has gathered since the last call; undefined = nothing. */
  drain(): TextEvent | undefined {
    const toolCalls = this.#toolCalls;
    const logprobs = this.#logprobs;
    const refusal = this.#refusal;
    const reasoning = this.#reasoning;
    const delta = this.#text;
    if (delta === "" && refusal === "" && reasoning === "" && toolCalls.length === 0 && logprobs.length === 0) {
      return undefined;
    }
    this.#text = "";
    this.#refusal = "";
    this.#reasoning = "";
    if (toolCalls.length > 0) this.#toolCalls = [];
    if (logprobs.length > 0) this.#logprobs = [];
    return {
      type: "text",
      delta,
      ...(toolCalls.length > 0 && { toolCalls }),
      ...(logprobs.length > 0 && { logprobs }),
      ...(refusal !== "" && { refusal }),
      ...(reasoning !== "" && { reasoning }),
    };
  }

  /** The end of the answer. Throws SluiceError `backend_stream_broken` when the upstream has not told of one. */
  finish(): Finish {
    if (this.#finish === undefined) throw broken("it ended without a finish_reason");
    // Some say `stop` after a call, OpenAI itself where the call was forced.
    const called = this.#calls > 0 && this.#finish.reason === "stop";
    return {
      type: "finish",
      ...this.#finish,
      ...(called && { textReason: "tool_calls" }),
      usage: this.#usage ?? {
        promptTokens: this.#options.promptTokens,
        cachedTokens: 0,
        completionTokens: this.#pieces,
        estimated: true,
      },
    };
  }

  #tellsError(chunk: Fields): boolean {
    if (chunk.error !== undefined && chunk.error !== null && chunk.error !== false) return true;
    const choice = record(list(chunk.choices)?.[0]);
    if (choice?.error !== undefined && choice.error !== null) throw this.#choiceError(choice);
    // A bare `{message, code}`, or vLLM's old `{object: "error"}`.
    return chunk.choices === undefined && chunk.usage === undefined && readFault(chunk) !== undefined;
  }

  #choiceError(choice: Fields): SluiceError {
    const fault = readFault(choice);
    return fault === undefined ? broken("it reports an error") : inBandFault(fault, this.#options.fault);
  }

  #choices(given: unknown): void {
    const choices = list(given);
    if (choices === undefined) throw broken("an event is malformed");
    if (choices.length === 0) return;
    const choice = record(choices[0]);
    // One answer was asked for; another one's text would be mixed into it.
    if (choice === undefined || choices.length > 1 || (choice.index !== undefined && choice.index !== 0)) {
      throw broken("an event is malformed");
    }
    const delta = choice.delta === undefined ? undefined : record(choice.delta);
    if (choice.delta !== undefined && choice.delta !== null && delta === undefined)
      throw broken("an event is malformed");
    const text = string(delta?.content) + string(choice.text);
    const reasoning = string(delta?.reasoning_content ?? delta?.reasoning);
    const refusal = string(delta?.refusal);
    const calls = delta?.tool_calls === undefined || delta.tool_calls === null ? [] : list(delta.tool_calls);
    if (calls === undefined) throw broken("an event is malformed");
    const some = text !== "" || reasoning !== "" || refusal !== "" || calls.length > 0;
    if (some && this.finished) throw broken("it goes on after its finish_reason");
    if (some) this.#pieces++;
    this.#text += text;
    this.#reasoning += reasoning;
    this.#refusal += refusal;
    for (const call of calls) this.#toolCalls.push(this.#toolCall(record(call)));
    if (this.#options.logprobs) this.#takeLogprobs(choice.logprobs, text);
    this.#takeFinish(choice.finish_reason);
  }

  #takeFinish(reason: unknown): void {
    if (reason === undefined || reason === null || reason === "") return;
    const finish = typeof reason === "string" && Object.hasOwn(finishes, reason) ? finishes[reason] : undefined;
    if (finish === undefined) throw broken(reason === "error" ? "it reports an error" : "its finish_reason is unknown");
    this.#finish ??= finish;
  }

  #toolCall(call: Fields | undefined): ToolCallDelta {
    const f = record(call?.function);
    if (call === undefined || (call.function !== undefined && f === undefined)) throw broken("an event is malformed");
    const id = string(call.id);
    // Some leave the index out: an id then begins a call, and what has none goes on with the last.
    const index = call.index ?? (id === "" ? Math.max(0, this.#calls - 1) : this.#calls);
    if (typeof index !== "number" || !Number.isInteger(index) || index < 0 || index > 127) {
      throw broken("an event is malformed");
    }
    this.#calls = Math.max(this.#calls, index + 1);
    const name = string(f?.name);
    return { index, ...(id !== "" && { id }), ...(name !== "" && { name }), arguments: string(f?.arguments) };
  }

  #takeLogprobs(given: unknown, text: string): void {
    const before = this.#logprobs.length;
    const fields = record(given);
    const content = list(fields?.content);
    const tokens = list(fields?.tokens);
    if (content !== undefined) for (const entry of content) this.#logprobs.push(chatLogprob(entry));
    else if (tokens !== undefined) this.#logprobs.push(...completionLogprobs(tokens, fields ?? {}));
    if (text !== "" && this.#logprobs.length === before) {
      throw new SluiceError({
        status: 502,
        type: "server_error",
        code: "backend_incompatible",
        message: "A backend gave no log probabilities.",
        retryable: true,
      });
    }
  }
}

function chatLogprob(given: unknown): TextTokenLogprob {
  const entry = record(given);
  const one = tokenLogprob(entry);
  const top = entry?.top_logprobs;
  return { ...one, top: (list(top) ?? []).map((alternative) => tokenLogprob(record(alternative))) };
}

function tokenLogprob(entry: Fields | undefined): Omit<TextTokenLogprob, "top"> {
  const { token, logprob, bytes } = entry ?? {};
  if (typeof token !== "string" || typeof logprob !== "number") throw broken("its log probabilities are malformed");
  const known = list(bytes)?.filter((byte) => typeof byte === "number");
  return { token, logprob, bytes: known };
}

/** `/completions` tells columns instead of rows, and the alternatives as an object. */
function completionLogprobs(tokens: readonly unknown[], fields: Fields): TextTokenLogprob[] {
  const values = list(fields.token_logprobs) ?? [];
  const tops = list(fields.top_logprobs) ?? [];
  return tokens.map((token, index) => {
    const top = Object.entries(record(tops[index]) ?? {});
    return {
      ...tokenLogprob({ token, logprob: values[index] }),
      top: top.map(([alternative, logprob]) => tokenLogprob({ token: alternative, logprob })),
    };
  });
}

function usageOf(usage: Fields | undefined): Usage | undefined {
  const promptTokens = count(usage?.prompt_tokens);
  const completionTokens = count(usage?.completion_tokens);
  if (promptTokens === undefined || completionTokens === undefined) return undefined;
  const details = record(usage?.prompt_tokens_details);
  // DeepSeek has a name of its own.
  const cached = count(details?.cached_tokens) ?? count(usage?.prompt_cache_hit_tokens) ?? 0;
  return { promptTokens, completionTokens, cachedTokens: Math.min(cached, promptTokens) };
}

const count = (value: unknown): number | undefined =>
  typeof value === "number" && Number.isSafeInteger(value) && value >= 0 ? value : undefined;

function parsed(data: string): unknown {
  try {
    return JSON.parse(data);
  } catch (error) {
    throw broken("an event is not JSON", error);
  }
}

function string(value: unknown): string {
  if (value === undefined || value === null) return "";
  if (typeof value !== "string") throw broken("an event is malformed");
  return value;
}
