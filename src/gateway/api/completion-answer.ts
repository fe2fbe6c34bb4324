import type { Usage } from "../../backends/backend.ts";
import type { Vocabulary } from "../../tokenizer/vocabulary.ts";
import type { Delta, LogprobEntry } from "../answer/choice.ts";
import {
  type AnswerFinish,
  type AnswerFormat,
  type AnswerHead,
  type AnswerStream,
  logprobJson,
  usageJson,
} from "./answer.ts";
import { sseEvent } from "./sse.ts";

const text = new TextDecoder("utf-8", { ignoreBOM: true });

/** Token text as a member name; a token that is no whole UTF-8 is shown by its bytes, so that names stay apart. */
function tokenName(vocabulary: Vocabulary, id: number): string {
  const bytes = vocabulary.bytes(id);
  const shown = text.decode(bytes);
  if (!shown.includes("\ufffd")) return JSON.stringify(shown);
  const hex = Array.from(bytes, (byte) => `\\x${byte.toString(16).padStart(2, "0")}`);
  return JSON.stringify(`bytes:${hex.join("")}`);
}

function logprobsJson(vocabulary: Vocabulary, entries: readonly LogprobEntry[]): string {
  if (entries.length === 0) return "null";
  const tokens = entries.map((entry) =>
    "text" in entry ? JSON.stringify(entry.text.token) : tokenName(vocabulary, entry.id),
  );
  const values = entries.map((entry) => logprobJson("text" in entry ? entry.text.logprob : entry.value.logprob));
  const tops = entries.map((entry) => {
    const members =
      "text" in entry
        ? entry.text.top.map(({ token, logprob }) => `${JSON.stringify(token)}:${logprobJson(logprob)}`)
        : entry.value.top.map(([id, logprob]) => `${tokenName(vocabulary, id)}:${logprobJson(logprob)}`);
    return `{${members.join(",")}}`;
  });
  const offsets = entries.map((entry) => entry.offset);
  return `{"tokens":[${tokens}],"token_logprobs":[${values}],"top_logprobs":[${tops}],"text_offset":[${offsets}]}`;
}

const start = (head: AnswerHead): string =>
  `{"id":"${head.id}","object":"text_completion","created":${head.created},"model":${JSON.stringify(head.model)},"choices":[`;

const choiceJson = (index: number, content: string, logprobs: string, finish: string): string =>
  `{"text":${JSON.stringify(content)},"index":${index},"logprobs":${logprobs},"finish_reason":${finish}}`;

class CompletionStream implements AnswerStream {
  readonly #before: string;
  readonly #after: string;
  readonly #vocabulary: Vocabulary;

  constructor(head: AnswerHead, vocabulary: Vocabulary, includeUsage: boolean) {
    this.#vocabulary = vocabulary;
    this.#before = `data: ${start(head)}`;
    this.#after = includeUsage ? '],"usage":null}\n\n' : "]}\n\n";
  }

  begin(): string {
    return "";
  }

  delta(index: number, delta: Delta): string {
    if (delta.content === "" && delta.logprobs.length === 0) return "";
    const logprobs = logprobsJson(this.#vocabulary, delta.logprobs);
    return this.#before + choiceJson(index, delta.content, logprobs, "null") + this.#after;
  }

  finish(index: number, reason: AnswerFinish): string {
    return this.#before + choiceJson(index, "", "null", `"${reason}"`) + this.#after;
  }

  usage(usage: Usage): string {
    return sseEvent(`${this.#before.slice("data: ".length)}],"usage":${usageJson(usage)}}`);
  }
}

export const completionFormat: AnswerFormat = {
  idPrefix: "cmpl-",
  stream: (head, vocabulary, options) => new CompletionStream(head, vocabulary, options.includeUsage),
  whole(head, vocabulary, choices, usage) {
    const list = choices.map((choice) => {
      const content = choice.deltas.map((delta) => delta.content).join("");
      const entries = choice.deltas.flatMap((delta) => delta.logprobs);
      return choiceJson(choice.index, content, logprobsJson(vocabulary, entries), `"${choice.finish}"`);
    });
    return `${start(head)}${list.join(",")}],"usage":${usageJson(usage)}}`;
  },
};
