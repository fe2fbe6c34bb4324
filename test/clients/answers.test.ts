import { ChatOpenAI } from "@langchain/openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Pair, startPair } from "../support/pair.ts";
import { type Ask, findPlace, Place } from "./client.ts";
import { clientAt, clients } from "./clients.ts";

/** What every client makes of the real model's answers. */
let pair: Pair;
beforeAll(async () => {
  pair = await startPair();
});
afterAll(() => pair.close());

const options = () => ({ baseURL: `${pair.gateway.url}/v1`, apiKey: pair.key });
const ask = (changes: Partial<Ask> = {}): Ask => ({
  model: pair.model,
  prompt: "Where is the Eiffel tower? Is its city well known?",
  kind: "text",
  maxTokens: 60,
  ...changes,
});

describe.each(Object.keys(clients))("%s", (name) => {
  const modes = ["streamed", "whole"] as const;

  it("hands over the same text, end and usage, streamed and whole", async () => {
    const client = clientAt(name, options());
    const [streamed, whole] = [await client.streamed(ask()), await client.whole(ask())];
    expect(streamed.error).toBeUndefined();
    expect(streamed.text.length).toBeGreaterThan(20);
    expect(streamed.usage?.input).toBeGreaterThan(10);
    expect(streamed.usage?.output).toBeGreaterThan(5);
    expect(whole).toEqual(streamed);
  });

  it("says that an answer was cut off by its limit", async () => {
    for (const mode of modes) {
      const seen = await clientAt(name, options())[mode](ask({ maxTokens: 5 }));
      expect(seen).toMatchObject({ finish: "length", usage: { output: 5 }, error: undefined });
    }
  });

  it("hands over a tool call whose input fits the tool", async () => {
    for (const mode of modes) {
      const seen = await clientAt(name, options())[mode](ask({ kind: "tool" }));
      expect(seen.error).toBeUndefined();
      expect(seen.finish).toMatch(/^tool[_-]calls$/);
      expect(seen.calls.map((call) => call.name)).toEqual([findPlace.name]);
      expect(findPlace.input.safeParse(seen.calls[0]?.input).success).toBe(true);
    }
  });

  it("hands over a parsed value of the schema", async () => {
    for (const mode of modes) {
      const seen = await clientAt(name, options())[mode](ask({ kind: "json" }));
      expect(seen.error).toBeUndefined();
      expect(Place.safeParse(seen.value).success).toBe(true);
    }
  });

  it("that leaves in the middle of a stream leaves nothing behind in the engine", async () => {
    const { engine } = pair.daemon;
    const control = new AbortController();
    const story = ask({
      prompt: "Tell me a very long story about a lighthouse.",
      maxTokens: 1000,
      signal: control.signal,
      onPiece: () => control.abort(),
    });
    const cancelled = () =>
      pair.gateway.metric(`sluice_requests_total{api="chat",model="${pair.model}",outcome="cancelled"}`);
    const before = await cancelled();
    const seen = await clientAt(name, options()).streamed(story);
    expect(seen.finish).toBeUndefined();
    await expect.poll(cancelled, { timeout: 60_000 }).toBe(before + 1);
    await expect.poll(() => engine.stats().runningRows, { timeout: 60_000 }).toBe(0);
    expect(engine.stats().blocks.leased).toBe(0);
    expect(engine.integrity()).toMatchObject({ ok: true });
    expect(await pair.gateway.metric("sluice_active_requests")).toBe(0);
  });
});

describe("several answers to one request", () => {
  const messages = [{ role: "user" as const, content: "Name a colour." }];

  it("openai-node has them all, whole and streamed", async () => {
    const params = { model: pair.model, messages, n: 3, seed: 7, temperature: 1, max_tokens: 8 };
    const { completions } = pair.gateway.openai.chat;
    const whole = await completions.create(params);
    const texts = whole.choices.map(({ message }) => message.content);
    expect(texts).toHaveLength(3);
    expect(new Set(texts).size).toBeGreaterThan(1);
    const streamed = await completions.stream(params).finalChatCompletion();
    expect(streamed.choices.map(({ message }) => message.content)).toEqual(texts);
    const raw = ["", "", ""];
    for await (const { choices } of await completions.create({ ...params, stream: true })) {
      for (const { index, delta } of choices) raw[index] += delta.content ?? "";
    }
    expect(raw).toEqual(texts);
  });

  it("LangChain.js has them all", async () => {
    const model = new ChatOpenAI({
      model: pair.model,
      apiKey: pair.key,
      configuration: { baseURL: `${pair.gateway.url}/v1` },
      n: 3,
      temperature: 1,
      maxTokens: 8,
    });
    const { generations } = await model.generate([[["user", "Name a colour."]]]);
    expect(generations[0]).toHaveLength(3);
    for (const { text } of generations[0] ?? []) expect(text.length).toBeGreaterThan(0);
  });
});
