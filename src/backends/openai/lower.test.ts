import { describe, expect, it } from "vitest";
import { generationRequest, greedy } from "../../../test/support/requests.ts";
import { poolsConfig } from "../../../test/support/prepared.ts";
import { type OpenAICapabilities, undeclaredCapabilities } from "../../config/schema.ts";
import { chatBody } from "../../gateway/api/chat.ts";
import { completionBody } from "../../gateway/api/completions.ts";
import type { GenerationRequest, TextForm } from "../backend.ts";
import { lower, objectionTo } from "./lower.ts";

const messages = [{ role: "user", content: "Hello" }];

function capabilities(declared: Record<string, unknown> = {}): OpenAICapabilities {
  const pools = poolsConfig({ far: ["http://127.0.0.1:1"] }, { backend: "openai", capabilities: declared }).pools;
  return pools.far?.capabilities ?? undeclaredCapabilities;
}

function request(
  kind: TextForm["kind"],
  body: Record<string, unknown>,
  text: Partial<TextForm> = {},
): GenerationRequest {
  const whole = kind === "chat" ? { model: "m", messages, ...body } : { model: "m", prompt: "Hello", ...body };
  return generationRequest({ model: "upstream", maxNewTokens: 9, text: { kind, body: whole, ...text } });
}

const chat = (body: Record<string, unknown>, declared: Record<string, unknown> = {}, text: Partial<TextForm> = {}) =>
  lower(request("chat", body, text), capabilities(declared)).body;
const completion = (
  body: Record<string, unknown>,
  declared: Record<string, unknown> = {},
  text: Partial<TextForm> = {},
) => lower(request("completion", body, text), capabilities({ completions: true, ...declared })).body;

const basis = { model: "upstream", messages, max_tokens: 9, stream: true, stream_options: { include_usage: true } };

it.each([
  ["chat", chatBody],
  ["completion", completionBody],
] as const)("every field that a %s request may have is known here", (kind, schema) => {
  const declared = capabilities({ completions: true });
  for (const name of Object.keys(schema.shape)) {
    if (name === "messages" || name === "prompt") continue;
    // A value that nobody declares support for is refused by its own name, never because nobody knows the field.
    const refused = objectionTo(request(kind, { [name]: { odd: true } }), declared);
    const known = objectionTo(request(kind, { [name]: null }), declared);
    expect(known, name).toBeUndefined();
    if (refused !== undefined) expect(refused.param, name).toBe(name);
  }
});

it("a field that is not known is refused, not dropped", () => {
  expect(() => chat({ surprise: 1 })).toThrow(
    expect.objectContaining({ code: "capability_missing", param: "surprise", status: 400, retryable: true }),
  );
});

it("what every endpoint takes is handed on as it was asked for", () => {
  const asked = { temperature: 0.5, top_p: 0.9, presence_penalty: 1, frequency_penalty: -1, stop: ["END"] };
  expect(chat(asked)).toEqual({ ...basis, ...asked });
});

it("what is the gateway's own, and what is for the caller's books, is not", () => {
  const own = {
    n: 3,
    stream: false,
    stream_options: { include_usage: false },
    max_tokens: 5,
    max_completion_tokens: 6,
  };
  const books = { user: "u", metadata: { a: "b" }, store: true, prompt_cache_key: "k", safety_identifier: "s" };
  expect(
    chat({ ...own, ...books, response_format: { type: "text" }, modalities: ["text"], verbosity: "medium" }),
  ).toEqual(basis);
});

describe("fields that an endpoint may not have", () => {
  it.each([
    ["top_k", 40, {}],
    ["min_p", 0.1, {}],
    ["repetition_penalty", 1.1, {}],
    ["ignore_eos", true, {}],
    ["stop_token_ids", [7], { sharedVocabulary: true }],
    ["bad_words", ["no"], {}],
    ["chat_template_kwargs", { thinking: false }, {}],
    ["structured_outputs", { regex: "a+" }, {}],
  ])("%s is sent where it is declared, else refused by name", (name, value, also) => {
    expect(chat({ [name]: value }, { extensions: [name], ...also })).toEqual({ ...basis, [name]: value });
    expect(() => chat({ [name]: value })).toThrow(expect.objectContaining({ code: "capability_missing", param: name }));
  });

  it.each([
    { top_k: -1, min_p: 0, repetition_penalty: 1 },
    { ignore_eos: false, stop_token_ids: [], bad_words: [], chat_template_kwargs: {}, logit_bias: {} },
    { logprobs: false, seed: null, tools: null, tool_choice: null, parallel_tool_calls: true },
  ])("a value that asks for nothing needs nothing: %j", (body) => {
    expect(chat(body)).toEqual(basis);
  });

  it.each([
    ["logit_bias", { 5: 1 }, {}, { sharedVocabulary: true }],
    [
      "stop_token_ids",
      [5],
      { extensions: ["stop_token_ids"] },
      { extensions: ["stop_token_ids"], sharedVocabulary: true },
    ],
    ["logprobs", true, {}, { logprobs: true }],
    ["seed", 5, {}, { seed: true }],
  ])("%s needs its own word", (name, value, without, declared) => {
    expect(() => chat({ [name]: value }, without)).toThrow(expect.objectContaining({ param: name }));
    expect(chat({ [name]: value }, declared)).toMatchObject({ [name]: value });
  });

  it("a stop string is the gateway's work where the endpoint takes none", () => {
    expect(chat({ stop: "END" }, { stop: false })).toEqual(basis);
  });

  it("developer messages become system messages where the role is not known", () => {
    const developer = [{ role: "developer", content: "Be short." }];
    expect(chat({ messages: developer })).toMatchObject({ messages: [{ role: "system", content: "Be short." }] });
    expect(chat({ messages: developer }, { developerRole: true })).toMatchObject({ messages: developer });
  });

  it("the bound on tokens and the wish for usage go under the names that are declared", () => {
    expect(chat({}, { maxTokensField: "max_completion_tokens", streamUsage: false })).toEqual({
      model: "upstream",
      messages,
      max_completion_tokens: 9,
      stream: true,
    });
    expect(completion({}, { maxTokensField: "max_completion_tokens" })).toMatchObject({ max_tokens: 9 });
  });
});

describe("structured answers", () => {
  const schema = { type: "object", properties: { a: { type: "string" } } };
  const format = { type: "json_schema", json_schema: { name: "x", schema, strict: true } };
  const lowered = { type: "json_schema", json_schema: { name: "answer", schema, strict: true } };

  it.each([
    [{ response_format: format }, { jsonSchema: true }, { response_format: format }],
    [{ response_format: { type: "json_object" } }, { jsonObject: true }, { response_format: { type: "json_object" } }],
    [
      { response_format: { type: "json_schema", json_schema: { name: "x" } } },
      { jsonObject: true },
      { response_format: { type: "json_object" } },
    ],
    [{ structured_outputs: { json: schema } }, { jsonSchema: true }, { response_format: lowered }],
    [{ structured_outputs: { json: JSON.stringify(schema) } }, { jsonSchema: true }, { response_format: lowered }],
    [{ structured_outputs: { json_object: true } }, { jsonObject: true }, { response_format: { type: "json_object" } }],
  ])("%j", (body, declared, sent) => {
    expect(chat(body, declared)).toEqual({ ...basis, ...sent });
    const other = Object.hasOwn(declared, "jsonSchema") ? { jsonObject: true } : { jsonSchema: true };
    expect(() => chat(body, other)).toThrow(expect.objectContaining({ param: Object.keys(body)[0] }));
  });

  it.each([{ regex: "a" }, { grammar: 'root ::= "a"' }, { choice: ["a"] }])("%j has no other name", (outputs) => {
    expect(() => chat({ structured_outputs: outputs }, { jsonSchema: true, jsonObject: true })).toThrow(
      expect.objectContaining({ code: "capability_missing", param: "structured_outputs" }),
    );
  });

  it("a begun one is not continued: the grammar would begin anew in its middle", () => {
    const declared = { jsonSchema: true, assistantPrefill: true };
    expect(() => chat({ response_format: format }, declared, { generated: '{"a"' })).toThrow(
      expect.objectContaining({ code: "capability_missing" }),
    );
  });
});

describe("tools", () => {
  const tools = [{ type: "function", function: { name: "f", strict: true } }];
  const used = [
    ...messages,
    {
      role: "assistant",
      content: null,
      tool_calls: [{ id: "1", type: "function", function: { name: "f", arguments: "{}" } }],
    },
    { role: "tool", content: "42", tool_call_id: "1" },
  ];

  it("are sent with their choice where the endpoint has them", () => {
    const asked = { tools, tool_choice: "auto", parallel_tool_calls: false };
    expect(chat(asked, { tools: true, jsonSchema: true })).toEqual({ ...basis, ...asked });
    expect(chat({ messages: used }, { tools: true })).toEqual({ ...basis, messages: used });
  });

  it.each([
    [{ tools }, {}, "tools"],
    [{ tools }, { tools: true }, "tools[0].function.strict"],
    [{ messages: used }, {}, "messages[1]"],
  ])("are refused where it does not: %j", (body, declared, param) => {
    expect(() => chat(body, declared)).toThrow(expect.objectContaining({ code: "capability_missing", param }));
  });

  it("that may not be called are not shown", () => {
    expect(chat({ tools, tool_choice: "none" })).toEqual(basis);
  });
});

describe("an answer that goes on", () => {
  const generated = "The answer";
  it.each([
    [true, {}, {}],
    ["prefix", { prefix: true }, {}],
    ["continue_final_message", {}, { continue_final_message: true, add_generation_prompt: false }],
  ])("says so the endpoint's way: %s", (assistantPrefill, flag, fields) => {
    const sent = chat({}, { assistantPrefill }, { generated });
    expect(sent).toEqual({
      ...basis,
      ...fields,
      messages: [...messages, { role: "assistant", content: generated, ...flag }],
    });
  });

  it("is refused where the endpoint cannot, and behind the caller's own beginning", () => {
    const error = expect.objectContaining({ code: "capability_missing", param: "messages" });
    expect(() => chat({}, {}, { generated })).toThrow(error);
    const begun = [...messages, { role: "assistant", content: "I begin" }];
    expect(() => chat({ messages: begun }, { assistantPrefill: true }, { generated })).toThrow(error);
  });

  it("is part of the prompt of a text completion", () => {
    expect(completion({}, {}, { generated })).toMatchObject({ prompt: `Hello${generated}` });
    const ids = { ...request("completion", { prompt: [1, 2] }, { generated }), generatedIds: Uint32Array.of(3) };
    expect(lower(ids, capabilities({ completions: true, sharedVocabulary: true })).body).toMatchObject({
      prompt: [1, 2, 3],
    });
  });
});

describe("text completions", () => {
  it("need an endpoint that has them", () => {
    expect(() => lower(request("completion", {}), capabilities())).toThrow(
      expect.objectContaining({ param: "prompt" }),
    );
  });

  it("are one prompt each", () => {
    expect(completion({ prompt: ["a", "b"] }, {}, { promptIndex: 1 })).toMatchObject({ prompt: "b" });
    expect(completion({ prompt: ["a"] })).toMatchObject({ prompt: "a" });
    expect(() => completion({ prompt: ["a", "b"] })).toThrow(expect.objectContaining({ param: "prompt" }));
  });

  it("of token ids need the same vocabulary", () => {
    expect(() => completion({ prompt: [1, 2] })).toThrow(expect.objectContaining({ param: "prompt" }));
    expect(completion({ prompt: [[1, 2], [3]] }, { sharedVocabulary: true }, { promptIndex: 1 })).toMatchObject({
      prompt: [3],
    });
  });
});

describe("seeds", () => {
  const seeds = (seed: number | undefined, drawn: number) =>
    [0, 1].map((choice) => {
      const sampling = { ...greedy, seed: drawn, choice };
      const whole = { ...request("chat", seed === undefined ? {} : { seed }), sampling };
      return lower(whole, capabilities({ seed: true })).body.seed;
    });

  it("are the caller's, another for each choice, and always whole numbers", () => {
    expect(seeds(-5, 0)).toEqual([-5, -4]);
    expect(seeds(Number.MAX_SAFE_INTEGER, 0)).toEqual([Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER - 1]);
  });

  it("that nobody asked for are the drawn one's, in 31 bits", () => {
    expect(seeds(undefined, 0xffff_ffff)).toEqual([0x7fff_ffff, 0]);
  });
});
