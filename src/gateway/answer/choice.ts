import type { GenerationEvent, TextEvent, TextTokenLogprob, TokenLogprob } from "../../backends/backend.ts";
import type { StreamDecoder } from "../../tokenizer/stream-decode.ts";
import type { AnswerFinish } from "../api/answer.ts";
import { StopMatcher } from "./stop-strings.ts";
import { ToolCallParser, type ToolPart } from "./tool-calls.ts";

/** A token of the gateway's own vocabulary, or one as a backend of text tells it. */
export type LogprobEntry = {
  /** Where the token's text begins in the answer, in UTF-16 units. */
  readonly offset: number;
} & ({ readonly id: number; readonly value: TokenLogprob } | { readonly text: TextTokenLogprob });

/** What a caller may see of a choice after a batch of tokens or a piece of text. */
export interface Delta {
  readonly content: string;
  readonly tools: ReadonlyArray<Exclude<ToolPart, { type: "content" }>>;
  readonly logprobs: readonly LogprobEntry[];
  readonly refusal?: string | undefined;
  readonly reasoning?: string | undefined;
  /** A stop string is complete: the choice is over and its generation should be cancelled. */
  readonly stopped: boolean;
}

export interface ChoiceOptions {
  readonly decoder: StreamDecoder;
  readonly stop: readonly string[];
  /** Names of the tools that may be called; empty = the answer is content, whatever it looks like. */
  readonly tools: ReadonlySet<string>;
}

type Finish = Extract<GenerationEvent, { type: "finish" }>;

const none: readonly never[] = [];

/**
 * Token batches of one choice -> what its caller sees: decode, tool calls, stop strings, in this order. Stop strings
 * look at content only: cutting inside a call would break its JSON. Text of a backend without tokens goes the same way
 * without the first two steps: such a backend takes calls out of the text itself.
 */
export class ChoiceReader {
  readonly #decoder: StreamDecoder;
  readonly #stops: StopMatcher;
  readonly #parser: ToolCallParser | undefined;
  readonly #aligned: boolean;
  #decoded = 0;
  #released = 0;
  /** White space that stands before a call is formatting, not content; it waits for what follows. */
  #blank = "";
  #entries: LogprobEntry[] = [];
  #stopped = false;
  /** Calls told by a backend of text: its index -> ours, which has no gaps. */
  readonly #told = new Map<number, number>();

  constructor(options: ChoiceOptions) {
    this.#decoder = options.decoder;
    this.#stops = new StopMatcher(options.stop);
    this.#parser = options.tools.size > 0 ? new ToolCallParser(options.tools) : undefined;
    // Log probabilities of held-back text wait with it, unless calls have taken text out of the count.
    this.#aligned = options.stop.length > 0 && this.#parser === undefined;
  }

  push(ids: readonly number[], logprobs: readonly TokenLogprob[] | undefined): Delta {
    let text = "";
    for (let index = 0; index < ids.length; index++) {
      const id = ids[index] ?? 0;
      const value = logprobs?.[index];
      if (value !== undefined) this.#entries.push({ id, offset: this.#decoded + text.length, value });
      text += this.#decoder.push(id);
    }
    return this.#take(text, false);
  }

  pushText(event: TextEvent): Delta {
    // A character that tokens of another backend began was never shown, and the text goes on before it.
    this.#decoder.flush();
    let offset = this.#decoded;
    for (const entry of event.logprobs ?? none) {
      this.#entries.push({ offset, text: entry });
      offset += entry.token.length;
    }
    this.#decoded += event.delta.length;
    let content = this.#match(event.delta);
    const tools: Array<Delta["tools"][number]> = [];
    if (!this.#stopped && event.toolCalls !== undefined) {
      // Content before a call is complete: nothing of it can become a stop string any more.
      content += this.#stops.flush();
      for (const { index: theirs, id, name = "", arguments: text } of event.toolCalls) {
        const index = this.#told.get(theirs) ?? this.#told.size;
        if (index === this.#told.size) {
          this.#told.set(theirs, index);
          tools.push({ type: "call", index, name, id });
        }
        if (text !== "") tools.push({ type: "arguments", index, text });
      }
    }
    this.#released += content.length;
    return {
      content,
      tools: tools.length === 0 ? none : tools,
      logprobs: this.#due(false),
      stopped: this.#stopped,
      ...(event.refusal !== undefined && { refusal: event.refusal }),
      ...(event.reasoning !== undefined && { reasoning: event.reasoning }),
    };
  }

  /** The backend ended the answer. The delta is what was held back. */
  finish({ reason, textReason }: Pick<Finish, "reason" | "textReason">): {
    readonly delta: Delta;
    readonly reason: AnswerFinish;
  } {
    const delta = this.#take(this.#decoder.flush(), true);
    if (delta.stopped) return { delta, reason: "stop" };
    const called = (this.#parser?.calls ?? 0) > 0 && reason === "stop";
    return { delta, reason: textReason ?? (called ? "tool_calls" : reason) };
  }

  #take(text: string, last: boolean): Delta {
    this.#decoded += text.length;
    const parts = this.#parser?.push(text);
    let content = "";
    let tools: Delta["tools"] = none;
    if (parts === undefined) {
      content = this.#match(text);
      if (last && !this.#stopped) content += this.#stops.flush();
    } else {
      const calls: Array<Delta["tools"][number]> = [];
      if (last) parts.push(...(this.#parser?.finish() ?? []));
      for (const part of parts) {
        if (this.#stopped) break;
        if (part.type === "content") {
          content += this.#trim(this.#match(part.text));
        } else {
          // Content before a call is complete: nothing of it can become a stop string any more.
          if (part.type === "call") {
            content += this.#trim(this.#stops.flush());
            this.#blank = "";
          }
          calls.push(part);
        }
      }
      if (calls.length > 0) tools = calls;
      if (last && !this.#stopped) content += this.#trim(this.#stops.flush());
      if ((last || this.#stopped) && this.#parser?.calls === 0) content += this.#blank;
    }
    this.#released += content.length;
    return { content, tools, logprobs: this.#due(last), stopped: this.#stopped };
  }

  #match(text: string): string {
    if (text === "") return text;
    const found = this.#stops.push(text);
    if (found.hit) this.#stopped = true;
    return found.text;
  }

  #trim(text: string): string {
    const whole = this.#blank + text;
    const kept = whole.trimEnd();
    this.#blank = whole.slice(kept.length);
    return kept;
  }

  #due(last: boolean): readonly LogprobEntry[] {
    const entries = this.#entries;
    if (entries.length === 0) return none;
    let count = entries.length;
    if (this.#aligned && (!last || this.#stopped)) {
      count = entries.findIndex((entry) => entry.offset >= this.#released);
      if (count < 0) count = entries.length;
    }
    this.#entries = count === entries.length ? [] : entries.slice(count);
    return count === entries.length ? entries : entries.slice(0, count);
  }
}
