import { expect, test } from "vitest";
import { byteTokenizer } from "../testing/tokenizer.ts";
import { ChoiceReader, type Delta } from "./choice.ts";

const bytes = new TextEncoder();
const tokenizer = await byteTokenizer();

function read(text: string, options: { stop?: string[]; tools?: string[]; logprobs?: boolean } = {}) {
  const reader = new ChoiceReader({
    decoder: tokenizer.decoder(),
    stop: options.stop ?? [],
    tools: new Set(options.tools ?? []),
  });
  const deltas: Delta[] = [];
  for (const byte of bytes.encode(text)) {
    const delta = reader.push([byte], options.logprobs ? [{ logprob: -byte, top: [] }] : undefined);
    deltas.push(delta);
    if (delta.stopped) break;
  }
  const end = deltas.at(-1)?.stopped ? undefined : reader.finish({ reason: "stop" });
  if (end !== undefined) deltas.push(end.delta);
  return {
    content: deltas.map((delta) => delta.content).join(""),
    contents: deltas.map((delta) => delta.content),
    ids: deltas.flatMap((delta) => delta.logprobs.map((entry) => ("id" in entry ? entry.id : undefined))),
    offsets: deltas.flatMap((delta) => delta.logprobs.map((entry) => entry.offset)),
    reason: end?.reason ?? "stop",
    calls: deltas.flatMap((delta) => delta.tools.filter((part) => part.type === "call").map((part) => part.name)),
  };
}

test("a character of several tokens is shown when it is whole", () => {
  expect(read("a한b").contents).toEqual(["a", "", "", "한", "b", ""]);
});

test("an answer that ends inside a character shows that something is missing", () => {
  const reader = new ChoiceReader({ decoder: tokenizer.decoder(), stop: [], tools: new Set() });
  reader.push(Array.from(bytes.encode("한")).slice(0, 2), undefined);
  expect(reader.finish({ reason: "length" }).delta.content).toBe("\ufffd");
});

test("log probabilities come with the text they belong to and end where a stop string begins", () => {
  const { content, ids, offsets } = read("one END two", { stop: ["END"], logprobs: true });
  expect(content).toBe("one ");
  expect(ids).toEqual(Array.from(bytes.encode("one ")));
  expect(offsets).toEqual([0, 1, 2, 3]);
});

test("every token has its log probability when the answer ends by itself, also the ones held back", () => {
  expect(read("one EN", { stop: ["END"], logprobs: true }).ids).toEqual(Array.from(bytes.encode("one EN")));
});

test("white space round a tool call is not content; in an answer without a call it is", () => {
  const call = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>';
  const called = read(`Wait. \n\n${call}\n`, { tools: ["look"] });
  expect(called).toMatchObject({ content: "Wait.", reason: "tool_calls", calls: ["look"] });
  expect(read(`\n${call}`, { tools: ["look"] }).content).toBe("");
  expect(read("Plain words. \n", { tools: ["look"] })).toMatchObject({ content: "Plain words. \n", reason: "stop" });
});

test("a stop string inside a call's arguments is no stop, in the content after it is one", () => {
  const call = '<tool_call>{"name": "look", "arguments": {"q": "END"}}</tool_call>';
  expect(read(call, { tools: ["look"], stop: ["END"] })).toMatchObject({ reason: "tool_calls", calls: ["look"] });
  expect(read("a \n END b", { tools: ["look"], stop: ["END"] }).content).toBe("a \n ");
});

test("text of a backend without tokens: stop strings hold, calls come as they are told, half a character is dropped", () => {
  const reader = new ChoiceReader({ decoder: tokenizer.decoder(), stop: ["END"], tools: new Set() });
  expect(reader.push(Array.from(bytes.encode("안")).slice(0, 2), undefined).content).toBe("");
  expect(reader.pushText({ type: "text", delta: "one E" }).content).toBe("one ");
  const call = { index: 3, id: "c9", name: "f", arguments: "{}" };
  expect(reader.pushText({ type: "text", delta: "", toolCalls: [call], refusal: "no", reasoning: "hm" })).toMatchObject(
    {
      content: "E",
      tools: [
        { type: "call", index: 0, name: "f", id: "c9" },
        { type: "arguments", index: 0, text: "{}" },
      ],
      refusal: "no",
      reasoning: "hm",
    },
  );
  expect(reader.finish({ reason: "stop", textReason: "tool_calls" }).reason).toBe("tool_calls");
  const filtered = new ChoiceReader({ decoder: tokenizer.decoder(), stop: ["END"], tools: new Set() });
  expect(filtered.pushText({ type: "text", delta: "two END three" })).toMatchObject({ content: "two ", stopped: true });
});
