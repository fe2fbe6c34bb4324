import { describe, expect, it } from "vitest";
import { AnswerReader } from "./answer.ts";

function reader(logprobs = false): AnswerReader {
  const fault = { secrets: [], callerText: () => "", continuation: false };
  return new AnswerReader({ logprobs, promptTokens: 5, fault });
}
function read(chunks: readonly unknown[], logprobs = false) {
  const answer = reader(logprobs);
  for (const chunk of chunks) {
    answer.take({ event: "message", data: typeof chunk === "string" ? chunk : JSON.stringify(chunk) });
  }
  return answer;
}
const choice = (fields: object) => ({ choices: [{ index: 0, ...fields }] });
const delta = (fields: object, finish: string | null = null) => choice({ delta: fields, finish_reason: finish });

it("what came together is one event, and is handed over once", () => {
  const answer = read([delta({ role: "assistant", content: "" }), delta({ content: "a" }), delta({ content: "b" })]);
  expect(answer.drain()).toEqual({ type: "text", delta: "ab" });
  expect(answer.drain()).toBeUndefined();
});

it("thoughts and refusals are told apart from the answer", () => {
  const answer = read([
    delta({ reasoning_content: "hm" }),
    delta({ reasoning: "m" }),
    delta({ refusal: "I cannot." }),
    delta({ content: null }, "stop"),
  ]);
  expect(answer.drain()).toEqual({ type: "text", delta: "", reasoning: "hmm", refusal: "I cannot." });
});

describe("tool calls", () => {
  const piece = (fields: object) => delta({ tool_calls: [fields] });
  it("without an index are told apart by their ids", () => {
    const answer = read([
      piece({ id: "a", function: { name: "f", arguments: "{" } }),
      piece({ function: { arguments: "}" } }),
      piece({ id: "b", function: { name: "g", arguments: "{}" } }),
      delta({}, "tool_calls"),
    ]);
    expect(answer.drain()?.toolCalls).toEqual([
      { index: 0, id: "a", name: "f", arguments: "{" },
      { index: 0, arguments: "}" },
      { index: 1, id: "b", name: "g", arguments: "{}" },
    ]);
    expect(answer.finish()).toMatchObject({ reason: "stop", textReason: "tool_calls" });
  });

  it("that ran into the bound are not complete", () => {
    const finish = read([piece({ index: 0, id: "a", function: { name: "f" } }), delta({}, "length")]).finish();
    expect(finish.reason).toBe("length");
    expect(finish.textReason).toBeUndefined();
  });
});

describe("usage", () => {
  const usage = (completion: number) => ({ prompt_tokens: 9, completion_tokens: completion });
  it.each([
    ["alone", [delta({ content: "a" }, "stop"), { choices: [], usage: usage(1) }]],
    ["without choices at all", [delta({ content: "a" }, "stop"), { usage: usage(1) }]],
    ["beside empty text", [delta({ content: "a" }, "stop"), { ...delta({ content: "" }), usage: usage(1) }]],
    ["with the finish", [{ ...delta({ content: "a" }, "stop"), usage: usage(1) }]],
    [
      "running",
      [
        { ...delta({ content: "a" }), usage: usage(7) },
        { ...delta({}, "stop"), usage: usage(1) },
      ],
    ],
  ])("%s ends the answer", (_, chunks) => {
    const answer = read(chunks);
    expect(answer.complete).toBe(true);
    expect(answer.finish().usage).toEqual({ promptTokens: 9, completionTokens: 1, cachedTokens: 0 });
  });

  it("before the finish is not the last word", () => {
    const answer = read([{ ...delta({ content: "a" }), usage: usage(1) }, delta({}, "stop")]);
    expect(answer.complete).toBe(false);
    expect(answer.finish().usage).toMatchObject({ completionTokens: 1 });
  });

  it.each([
    [{ prompt_tokens_details: { cached_tokens: 4 } }, 4],
    [{ prompt_cache_hit_tokens: 3 }, 3],
    [{ prompt_tokens_details: { cached_tokens: 99 } }, 9],
  ])("tells of the cache: %j", (fields, cachedTokens) => {
    const answer = read([{ ...delta({}, "stop"), usage: { ...usage(1), ...fields } }]);
    expect(answer.finish().usage).toMatchObject({ cachedTokens });
  });

  it.each([{ prompt_tokens: -1, completion_tokens: 1 }, { prompt_tokens: 1.5, completion_tokens: 1 }, {}, null])(
    "that is none is not believed: %j",
    (given) => {
      const answer = read([{ ...delta({ content: "a" }, "stop"), usage: given }]);
      expect(answer.finish().usage).toMatchObject({ promptTokens: 5, completionTokens: 1, estimated: true });
    },
  );
});

it.each([
  ["an array", [[]]],
  ["null", ["null"]],
  ["choices that are none", [{ choices: {} }]],
  ["a choice that is none", [{ choices: [7] }]],
  ["two choices", [{ choices: [{ index: 0 }, { index: 1 }] }]],
  ["another choice", [{ choices: [{ index: 1, delta: { content: "a" } }] }]],
  ["a delta that is none", [choice({ delta: "a" })]],
  ["text that is none", [delta({ content: [{ type: "text" }] })]],
  ["calls that are none", [delta({ tool_calls: {} })]],
  ["a call that is none", [delta({ tool_calls: [7] })]],
  ["a call of an absurd number", [delta({ tool_calls: [{ index: 1e9 }] })]],
  ["text behind the end", [delta({}, "stop"), delta({ content: "a" })]],
  ["an end in error", [delta({}, "error")]],
  ["an error in the choice", [choice({ delta: {}, error: { message: "x", code: 502 }, finish_reason: "error" })]],
  ["an error beside the choices", [{ ...delta({ content: "" }), error: { message: "x" } }]],
  ["an error that says nothing", [{ error: {} }]],
  ["an error in the old form", [{ object: "error", message: "x", code: 500 }]],
  ["an error behind the end", [delta({}, "stop"), { error: { message: "x" } }]],
])("%s breaks the answer", (_, chunks) => {
  expect(() => read(chunks)).toThrow(expect.objectContaining({ code: "backend_stream_broken", retryable: true }));
});

it("log probabilities that are malformed, or of no number, break it too", () => {
  const odd = choice({ delta: { content: "a" }, logprobs: { content: [{ token: "a", logprob: "much" }] } });
  expect(() => read([odd], true)).toThrow(expect.objectContaining({ code: "backend_stream_broken" }));
  expect(read([odd]).drain()).toEqual({ type: "text", delta: "a" });
});

it("[DONE] alone is no end", () => {
  const answer = read([delta({ content: "a" }), "[DONE]"]);
  expect(answer.complete).toBe(true);
  expect(() => answer.finish()).toThrow(expect.objectContaining({ code: "backend_stream_broken" }));
});
