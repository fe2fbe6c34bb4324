import type { TextTokenLogprob, Usage } from "../../backends/backend.ts";
import type { Vocabulary } from "../../tokenizer/vocabulary.ts";
import type { Delta, LogprobEntry } from "../answer/choice.ts";
import {
  type AnswerFinish,
  type AnswerFormat,
  type AnswerHead,
  type AnswerStream,
  logprobJson,
  usageJson,
  type WholeChoice,
} from "./answer.ts";
import { sseEvent } from "./sse.ts";

const text = new TextDecoder("utf-8", { ignoreBOM: true });

function tokenJson(vocabulary: Vocabulary, id: number, logprob: number): string {
  const bytes = vocabulary.bytes(id);
  const token = JSON.stringify(text.decode(bytes));
  return `"token":${token},"logprob":${logprobJson(logprob)},"bytes":[${bytes.join(",")}]`;
}

/** A token as a backend of text told it. */
function textTokenJson({ token, logprob, bytes }: Omit<TextTokenLogprob, "top">): string {
  const known = bytes === undefined ? "null" : `[${bytes.join(",")}]`;
  return `"token":${JSON.stringify(token)},"logprob":${logprobJson(logprob)},"bytes":${known}`;
}

function entryJson(vocabulary: Vocabulary, entry: LogprobEntry): string {
  if ("text" in entry) {
    const alternatives = entry.text.top.map((alternative) => `{${textTokenJson(alternative)}}`);
    return `{${textTokenJson(entry.text)},"top_logprobs":[${alternatives.join(",")}]}`;
  }
  const top = entry.value.top.map(([id, logprob]) => `{${tokenJson(vocabulary, id, logprob)}}`);
  return `{${tokenJson(vocabulary, entry.id, entry.value.logprob)},"top_logprobs":[${top.join(",")}]}`;
}

function logprobsJson(vocabulary: Vocabulary, entries: readonly LogprobEntry[]): string {
  if (entries.length === 0) return "null";
  return `{"content":[${entries.map((entry) => entryJson(vocabulary, entry)).join(",")}],"refusal":null}`;
}

const callId = (): string => `call_${crypto.randomUUID().replaceAll("-", "").slice(0, 24)}`;

/** Nothing but content, as most of most answers. */
const isPlain = (delta: Delta): boolean =>
  delta.content !== "" &&
  delta.tools.length === 0 &&
  delta.logprobs.length === 0 &&
  delta.refusal === undefined &&
  delta.reasoning === undefined;

/** Chunks are put together as text: one string a batch, no object that lives only to be serialised. */
class ChatStream implements AnswerStream {
  readonly #before: string;
  readonly #after: string;
  readonly #vocabulary: Vocabulary;
  readonly #head: AnswerHead;

  constructor(head: AnswerHead, vocabulary: Vocabulary, includeUsage: boolean) {
    this.#head = head;
    this.#vocabulary = vocabulary;
    this.#before = `data: {"id":"${head.id}","object":"chat.completion.chunk","created":${head.created},"model":${JSON.stringify(head.model)},"choices":[{"index":`;
    this.#after = includeUsage ? '}],"usage":null}\n\n' : "}]}\n\n";
  }

  #chunk(index: number, delta: string, logprobs: string, finish: string): string {
    return `${this.#before}${index},"delta":{${delta}},"logprobs":${logprobs},"finish_reason":${finish}${this.#after}`;
  }

  begin(index: number): string {
    return this.#chunk(index, '"role":"assistant","content":"","refusal":null', "null", "null");
  }

  delta(index: number, delta: Delta): string {
    if (isPlain(delta)) return this.#chunk(index, `"content":${JSON.stringify(delta.content)}`, "null", "null");
    const fields: string[] = [];
    // DeepSeek's name for it, which vLLM and SGLang took over; OpenAI's chat API has none.
    if (delta.reasoning !== undefined) fields.push(`"reasoning_content":${JSON.stringify(delta.reasoning)}`);
    if (delta.content !== "") fields.push(`"content":${JSON.stringify(delta.content)}`);
    if (delta.refusal !== undefined) fields.push(`"refusal":${JSON.stringify(delta.refusal)}`);
    for (const part of delta.tools) {
      const call =
        part.type === "call"
          ? `"id":${JSON.stringify(part.id ?? callId())},"type":"function","function":{"name":${JSON.stringify(part.name)},"arguments":""}`
          : `"function":{"arguments":${JSON.stringify(part.text)}}`;
      fields.push(`"tool_calls":[{"index":${part.index},${call}}]`);
    }
    const logprobs = logprobsJson(this.#vocabulary, delta.logprobs);
    const [first] = fields;
    if (first === undefined) return logprobs === "null" ? "" : this.#chunk(index, '"content":""', logprobs, "null");
    let chunks = this.#chunk(index, first, logprobs, "null");
    for (let at = 1; at < fields.length; at++) chunks += this.#chunk(index, fields[at] ?? "", "null", "null");
    return chunks;
  }

  finish(index: number, reason: AnswerFinish): string {
    return this.#chunk(index, "", "null", `"${reason}"`);
  }

  usage(usage: Usage): string {
    const { id, created, model } = this.#head;
    return sseEvent(
      `{"id":"${id}","object":"chat.completion.chunk","created":${created},"model":${JSON.stringify(model)},"choices":[],"usage":${usageJson(usage)}}`,
    );
  }
}

function wholeChoice(vocabulary: Vocabulary, choice: WholeChoice): string {
  let content = "";
  const entries: LogprobEntry[] = [];
  let refusal = "";
  let reasoning = "";
  const calls: Array<{ id: string; name: string; arguments: string }> = [];
  for (const delta of choice.deltas) {
    content += delta.content;
    refusal += delta.refusal ?? "";
    reasoning += delta.reasoning ?? "";
    entries.push(...delta.logprobs);
    for (const part of delta.tools) {
      if (part.type === "call") calls.push({ id: part.id ?? callId(), name: part.name, arguments: "" });
      else {
        const call = calls[part.index];
        if (call !== undefined) call.arguments += part.text;
      }
    }
  }
  const message = {
    role: "assistant",
    content: content === "" && (calls.length > 0 || refusal !== "") ? null : content,
    refusal: refusal === "" ? null : refusal,
    ...(reasoning !== "" && { reasoning_content: reasoning }),
    ...(calls.length > 0 && {
      tool_calls: calls.map(({ id, ...call }) => ({ id, type: "function", function: call })),
    }),
  };
  return `{"index":${choice.index},"message":${JSON.stringify(message)},"logprobs":${logprobsJson(vocabulary, entries)},"finish_reason":"${choice.finish}"}`;
}

export const chatFormat: AnswerFormat = {
  idPrefix: "chatcmpl-",
  stream: (head, vocabulary, options) => new ChatStream(head, vocabulary, options.includeUsage),
  whole(head, vocabulary, choices, usage) {
    const list = choices.map((choice) => wholeChoice(vocabulary, choice)).join(",");
    return `{"id":"${head.id}","object":"chat.completion","created":${head.created},"model":${JSON.stringify(head.model)},"choices":[${list}],"usage":${usageJson(usage)}}`;
  },
};
