import type OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { canonicalAnswer, tokensOfText } from "../support/upstream/wire.ts";
import { type FaultGateway, startFaultGateway } from "./gateway.ts";

type Chunk = OpenAI.ChatCompletionChunk;
const messages = [{ role: "user" as const, content: "What is a gateway judged on?" }];
const open: FaultGateway[] = [];

async function behind(model: string, pool: Readonly<Record<string, unknown>> = {}): Promise<FaultGateway> {
  const started = await startFaultGateway({ pools: [{ model, ...pool }] });
  open.push(started);
  return started;
}

afterAll(async () => {
  for (const each of open) await each.close();
});

async function chunksOf<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const chunk of stream) all.push(chunk);
  return all;
}
const contentOf = (chunks: readonly Chunk[]) => chunks.map(({ choices }) => choices[0]?.delta.content ?? "").join("");

describe("a model behind any OpenAI-compatible endpoint", () => {
  let gateway: FaultGateway;
  beforeAll(async () => {
    gateway = await behind("fb-ok");
  });

  it("answers a chat whole, under the name that the endpoint knows the model by, with the endpoint's usage", async () => {
    const { data, response } = await gateway.openai.chat.completions.create({ model: "m", messages }).withResponse();
    expect(data).toMatchObject({
      object: "chat.completion",
      model: "fb-ok",
      choices: [{ message: { role: "assistant", content: canonicalAnswer, refusal: null }, finish_reason: "stop" }],
      usage: { completion_tokens: 60 },
    });
    expect(response.headers.get("x-sluice-pool")).toBe("0-fb-ok");
  });

  it("answers a chat as a stream", async () => {
    const options = { model: "m", messages, stream: true, stream_options: { include_usage: true } } as const;
    const chunks = await chunksOf(await gateway.openai.chat.completions.create(options));
    expect(contentOf(chunks)).toBe(canonicalAnswer);
    expect(chunks.findLast(({ choices }) => choices.length > 0)?.choices[0]?.finish_reason).toBe("stop");
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { completion_tokens: 60 } });
    expect(new Set(chunks.map(({ model }) => model))).toEqual(new Set(["fb-ok"]));
  });

  it("completes a text, whole and as a stream, and every one of several prompts", async () => {
    const one = await gateway.openai.completions.create({ model: "m", prompt: "Say it." });
    expect(one.choices).toMatchObject([{ text: canonicalAnswer, finish_reason: "stop" }]);
    const stream = await gateway.openai.completions.create({ model: "m", prompt: "Say it.", stream: true });
    expect((await chunksOf(stream)).map(({ choices }) => choices[0]?.text ?? "").join("")).toBe(canonicalAnswer);
    const half = canonicalAnswer.slice(0, 150);
    const both = await gateway.openai.completions.create({ model: "m", prompt: ["Say it.", `Go on: ${half}`] });
    expect(both.choices.map(({ text }) => text)).toEqual([canonicalAnswer, canonicalAnswer.slice(150)]);
  });

  it("gives each of n choices and counts the prompt once", async () => {
    const answer = await gateway.openai.chat.completions.create({ model: "m", messages, n: 3 });
    expect(answer.choices.map(({ message }) => message.content)).toEqual(Array(3).fill(canonicalAnswer));
    expect(answer.usage).toMatchObject({ completion_tokens: 180 });
    expect(answer.usage?.prompt_tokens).toBeLessThan(20);
  });

  it("ends at a stop string, streaming and not, and nothing of it is shown", async () => {
    const cut = canonicalAnswer.slice(0, canonicalAnswer.indexOf("in the middle"));
    const whole = await gateway.openai.chat.completions.create({ model: "m", messages, stop: ["in the middle"] });
    expect(whole.choices[0]).toMatchObject({ message: { content: cut }, finish_reason: "stop" });
    // The byte tokenizer's count of what was told: the endpoint was left before it could tell its own.
    expect(whole.usage?.completion_tokens).toBeGreaterThanOrEqual(cut.length);
    const stream = await gateway.openai.chat.completions.create({
      model: "m",
      messages,
      stop: ["in the middle"],
      stream: true,
    });
    const chunks = await chunksOf(stream);
    expect(contentOf(chunks)).toBe(cut);
    expect(chunks.at(-1)?.choices[0]?.finish_reason).toBe("stop");
  });

  it("tells log probabilities in the endpoint's own tokens", async () => {
    const chat = await gateway.openai.chat.completions.create({
      model: "m",
      messages,
      logprobs: true,
      top_logprobs: 2,
    });
    const content = chat.choices[0]?.logprobs?.content ?? [];
    expect(content.map(({ token }) => token)).toEqual(tokensOfText(canonicalAnswer));
    expect(content[0]).toMatchObject({ logprob: -"A".length / 8, bytes: [65] });
    expect(content[0]?.top_logprobs).toHaveLength(2);
    const text = await gateway.openai.completions.create({ model: "m", prompt: "Say it.", logprobs: 1 });
    expect(text.choices[0]?.logprobs?.tokens).toEqual(tokensOfText(canonicalAnswer));
    expect(text.choices[0]?.logprobs?.text_offset?.slice(0, 3)).toEqual([0, 1, 9]);
  });

  it("calls a tool, in pieces and whole, under the endpoint's id", async () => {
    const parameters = { type: "object", properties: { city: { type: "string" } } };
    const tools = [{ type: "function" as const, function: { name: "weather", parameters } }];
    const asked = { model: "m", messages, tools, tool_choice: "required" as const };
    const whole = await gateway.openai.chat.completions.create(asked);
    expect(whole.choices[0]).toMatchObject({
      finish_reason: "tool_calls",
      message: {
        content: null,
        tool_calls: [{ id: "call_mock_1", function: { name: "weather", arguments: '{"city": "Paris"}' } }],
      },
    });
    const final = await gateway.openai.chat.completions.stream(asked).finalChatCompletion();
    expect(final.choices[0]?.message.tool_calls?.[0]).toMatchObject({
      id: "call_mock_1",
      function: { name: "weather", arguments: '{"city": "Paris"}' },
    });
  });

  it("says so when the answer was cut by a filter or by its length", async () => {
    for (const [model, reason] of [
      ["x-content-filter", "content_filter"],
      ["x-length", "length"],
    ] as const) {
      const cut = await behind(model);
      const whole = await cut.openai.chat.completions.create({ model: "m", messages });
      expect(whole.choices[0]?.finish_reason).toBe(reason);
      const stream = await cut.openai.chat.completions.create({ model: "m", messages, stream: true });
      expect((await chunksOf(stream)).at(-1)?.choices[0]?.finish_reason).toBe(reason);
    }
  });

  it("is counted by the gateway's own tokenizer where the endpoint tells no usage", async () => {
    const silent = await behind("x-no-usage");
    const answer = await silent.openai.chat.completions.create({ model: "m", messages });
    expect(answer.usage?.completion_tokens).toBe(canonicalAnswer.length);
    expect(answer.usage?.prompt_tokens).toBeGreaterThan(messages[0]?.content.length ?? 0);
  });

  it("is refused by name what the pool does not declare, without an attempt", async () => {
    const plain = await behind("fb-ok", { capabilities: {} });
    const asked = plain.openai.chat.completions.create({ model: "m", messages, top_logprobs: 1, logprobs: true });
    await expect(asked).rejects.toMatchObject({ status: 400, code: "capability_missing", param: "logprobs" });
    expect(plain.upstream.attempts).toHaveLength(0);
  });

  it("is not asked for more than the endpoint's context holds, where that is known", async () => {
    const small = await behind("fb-ok", { capabilities: { contextLength: 64 } });
    await expect(
      small.openai.chat.completions.create({ model: "m", messages: [{ role: "user", content: "x".repeat(100) }] }),
    ).rejects.toMatchObject({ status: 400, code: "context_length_exceeded" });
  });
});
