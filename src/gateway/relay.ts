import type { GenerationEvent, TextEvent, Usage } from "../backends/backend.ts";
import type { Clock } from "../clock.ts";
import { asSluiceError, SluiceError, unavailable } from "../errors.ts";
import type { RequestTrace } from "../telemetry/spans.ts";
import type { Tokenizer } from "../tokenizer/index.ts";
import { ChoiceReader, type Delta } from "./answer/choice.ts";
import { DispatchSpans } from "./answer/spans.ts";
import type { Answer } from "./answer/streamed.ts";
import type { AnswerFinish } from "./api/answer.ts";
import type { Dispatcher } from "./dispatch/dispatch.ts";
import { callerLeft } from "./platform/platform.ts";
import type { Outcome, PreparedRequest } from "./request.ts";

export interface RelayInput {
  /** One for each prompt; each gives `n` choices. */
  readonly requests: readonly PreparedRequest[];
  readonly answer: Answer;
  readonly dispatcher: Pick<Dispatcher, "dispatch">;
  readonly tokenizer: Tokenizer;
  /** Names of the tools that may be called. */
  readonly tools: ReadonlySet<string>;
  readonly clock: Clock;
  /** Aborts when the caller leaves. */
  readonly caller: AbortSignal;
  /** Aborts with a SluiceError when the gateway must end what is open. */
  readonly shutdown: AbortSignal;
  readonly trace: RequestTrace;
  readonly observe: RelayObserver;
}

export interface RelayObserver {
  /** The first token of a request came. */
  firstToken(): void;
  /** `count` tokens of one choice came `ms` after those before. */
  tokens(ms: number, count: number): void;
  /** Another attempt takes a choice on; `resumed`: a part of it had come before. */
  retried(resumed: boolean): void;
}

/** Why a generation was cancelled when nothing is wrong. */
const stopFound = new SluiceError({
  status: 500,
  type: "server_error",
  code: "stop_found",
  message: "A stop string ended the answer.",
});

const brokenOff = (): SluiceError =>
  unavailable("backend_broke_off", "The backend stopped before the answer was complete.");

type TokensEvent = Extract<GenerationEvent, { type: "tokens" }>;

interface ChoiceTally {
  usage: Usage;
  /** What backends of text said, where they told no usage: it is counted when the choice is over. */
  text: string;
  finish: Outcome["finish"] | undefined;
}

/**
 * Token events -> the caller's answer. Every choice runs at once; the first that breaks ends them all, because an answer
 * with a choice missing is not the answer that was asked for. Never rejects: how it ended is in the outcome.
 */
export async function relay(input: RelayInput): Promise<Outcome> {
  return new Relay(input).run();
}

class Relay {
  readonly #input: RelayInput;
  readonly #choices: Array<{ request: PreparedRequest; choice: number; cancel: AbortController; tally: ChoiceTally }>;
  #firstTokenAt: number | undefined;

  constructor(input: RelayInput) {
    this.#input = input;
    this.#choices = input.requests.flatMap((request) =>
      Array.from({ length: request.n }, (_, choice) => ({
        request,
        choice,
        cancel: new AbortController(),
        tally: {
          usage: { promptTokens: request.promptIds.length, cachedTokens: 0, completionTokens: 0 },
          text: "",
          finish: undefined,
        },
      })),
    );
  }

  async run(): Promise<Outcome> {
    const { caller, shutdown, answer, clock } = this.#input;
    const leave = (): void => this.#cancelAll(callerLeft());
    const stop = (): void => this.#cancelAll(asSluiceError(shutdown.reason));
    caller.addEventListener("abort", leave);
    shutdown.addEventListener("abort", stop);
    if (caller.aborted) leave();
    if (shutdown.aborted) stop();
    const pumps = this.#choices.map((_, index) => this.#pump(index));
    let error: SluiceError | undefined;
    try {
      await Promise.all(pumps);
      answer.complete(this.#usage());
    } catch (thrown) {
      error = caller.aborted ? callerLeft() : asSluiceError(thrown);
      // First the caller, then the backends: they may take their time to confirm.
      if (caller.aborted) answer.abandon(error);
      else answer.fail(error);
      this.#cancelAll(error);
      await Promise.allSettled(pumps);
    } finally {
      caller.removeEventListener("abort", leave);
      shutdown.removeEventListener("abort", stop);
    }
    const finish = error === undefined ? this.#choices[0]?.tally.finish : caller.aborted ? "cancelled" : "error";
    return {
      usage: this.#usage(),
      finish: finish ?? "error",
      firstTokenAt: this.#firstTokenAt,
      finishedAt: clock.now(),
      error,
    };
  }

  async #pump(index: number): Promise<void> {
    const entry = this.#choices[index];
    if (entry === undefined) return;
    const { request, choice, cancel, tally } = entry;
    const { answer, dispatcher, tokenizer, tools, clock, observe } = this.#input;
    const open = () => new ChoiceReader({ decoder: tokenizer.decoder(), stop: request.stop, tools });
    let reader = open();
    const spans = new DispatchSpans(this.#input.trace);
    let lastAt = clock.now();
    let begun = false;
    let attempts = 0;
    const came = (tokens: number) => {
      const now = clock.now();
      if (begun) observe.tokens(now - lastAt, tokens);
      else this.#first(now, spans);
      begun = true;
      lastAt = now;
    };
    /** True when a stop string ended the choice. */
    const show = (delta: Delta): boolean => {
      answer.delta(index, delta);
      if (!delta.stopped) return false;
      this.#finish(index, "stop");
      // Before leaving the loop: the backend should hear of it now, not after the iterator's own clean-up.
      cancel.abort(stopFound);
      return true;
    };
    try {
      cancel.signal.throwIfAborted();
      for await (const event of dispatcher.dispatch(request, choice, cancel.signal)) {
        // A dispatcher may have had this event in hand when the answer was given up.
        cancel.signal.throwIfAborted();
        switch (event.type) {
          case "attempt":
            spans.attempt(event);
            if (attempts++ > 0) observe.retried(begun);
            answer.from(event.pool, event.upstreamModel);
            break;
          case "accepted":
            tally.usage = { ...tally.usage, cachedTokens: event.cachedTokens };
            spans.event("accepted", { "sluice.cached_tokens": event.cachedTokens });
            break;
          case "progress":
            break;
          case "restart":
            reader = open();
            answer.restart(index);
            tally.usage = { ...tally.usage, cachedTokens: 0, completionTokens: 0 };
            tally.text = "";
            break;
          case "tokens":
            if (event.ids.length > 0) came(event.ids.length);
            for (const part of request.stop.length > 0 ? oneByOne(event) : [event]) {
              count(tally, part.ids.length);
              if (show(reader.push(part.ids, part.logprobs))) return;
            }
            break;
          case "text":
            came(1);
            tally.text += textOf(event);
            if (show(reader.pushText(event))) return;
            break;
          case "finish": {
            if (event.usage.estimated !== true) {
              tally.usage = event.usage;
              tally.text = "";
            }
            const { delta, reason } = reader.finish(event);
            answer.delta(index, delta);
            this.#finish(index, reason);
            spans.finish(event);
            return;
          }
          case "error":
            throw new SluiceError({
              status: event.retryable ? 503 : 500,
              type: "server_error",
              code: event.code,
              message: event.message,
              retryable: event.retryable,
            });
        }
      }
      throw brokenOff();
    } catch (error) {
      // An abort's reason is the true one; what the dispatcher made of it is not.
      const cause = asSluiceError(cancel.signal.aborted ? cancel.signal.reason : error);
      spans.fail(cause.code);
      throw cause;
    } finally {
      if (tally.text !== "") count(tally, tokenizer.encode(tally.text).length);
      spans.end();
    }
  }

  #first(now: number, spans: DispatchSpans): void {
    spans.event("first_token");
    if (this.#firstTokenAt !== undefined) return;
    this.#firstTokenAt = now;
    this.#input.observe.firstToken();
  }

  #finish(index: number, reason: AnswerFinish): void {
    const entry = this.#choices[index];
    if (entry !== undefined) entry.tally.finish = reason;
    this.#input.answer.finish(index, reason);
  }

  #cancelAll(reason: SluiceError): void {
    for (const { cancel } of this.#choices) cancel.abort(reason);
  }

  /** A prompt counts once, whatever `n`; what its first choice found in the cache is what the prompt found. */
  #usage(): Usage {
    let promptTokens = 0;
    let cachedTokens = 0;
    let completionTokens = 0;
    for (const { choice, tally } of this.#choices) {
      completionTokens += tally.usage.completionTokens;
      if (choice > 0) continue;
      promptTokens += tally.usage.promptTokens;
      cachedTokens += tally.usage.cachedTokens;
    }
    return { promptTokens, cachedTokens, completionTokens };
  }
}

function count(tally: ChoiceTally, tokens: number): void {
  tally.usage = { ...tally.usage, completionTokens: tally.usage.completionTokens + tokens };
}

/** A stop string ends the answer at its token: what had come at once with it is not counted, or usage would tell of timing. */
function oneByOne({ ids, logprobs }: TokensEvent): ReadonlyArray<Pick<TokensEvent, "ids" | "logprobs">> {
  return ids.map((id, index) => ({ ids: [id], logprobs: logprobs?.slice(index, index + 1) }));
}

/** All that was generated, as text. */
function textOf({ delta, toolCalls = [], refusal = "", reasoning = "" }: TextEvent): string {
  return reasoning + delta + refusal + toolCalls.map(({ name = "", arguments: text }) => name + text).join("");
}
