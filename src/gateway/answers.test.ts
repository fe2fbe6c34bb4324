import { createHash } from "node:crypto";
import { describe, expect, test } from "vitest";
import { attempt, finish, type Script, say, scriptedDispatcher, tokens, untilAborted } from "./testing/dispatcher.ts";
import { startTestGateway, testKey } from "./testing/gateway.ts";

const hello = { model: "tiny", messages: [{ role: "user" as const, content: "Hi" }] };
const weather = {
  type: "function" as const,
  function: { name: "weather", parameters: { type: "object", properties: { city: { type: "string" } } } },
};
const call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Seoul"}}\n</tool_call>';

/** Each choice says its own number. */
const numbered: Script = async function* (request, choice) {
  yield attempt();
  yield tokens(`${choice}`);
  yield tokens("!");
  yield finish("stop", 3, request.promptIds.length);
};

describe("n answers", () => {
  test("come back whole, in order; the prompt counts once", async () => {
    const dispatcher = scriptedDispatcher(numbered);
    await using gateway = await startTestGateway(dispatcher);
    const answer = await gateway.openai.chat.completions.create({ ...hello, n: 3 });
    expect(answer.choices.map((choice) => choice.message.content)).toEqual(["0!", "1!", "2!"]);
    expect(answer.usage?.completion_tokens).toBe(9);
    expect(answer.usage?.prompt_tokens).toBe(dispatcher.requests[0]?.promptIds.length);
    expect(new Set(dispatcher.requests.map((request) => request.sampling.seed)).size).toBe(1);
  });

  test("stream side by side, each opened by its role and closed by its reason, then one [DONE]", async () => {
    await using gateway = await startTestGateway(scriptedDispatcher(numbered));
    const stream = await gateway.openai.chat.completions.create({ ...hello, n: 3, stream: true });
    const text: Record<number, string> = {};
    const ended: number[] = [];
    for await (const { choices } of stream) {
      for (const { index, delta, finish_reason } of choices) {
        if (delta.role !== undefined) text[index] = "";
        text[index] += delta.content ?? "";
        if (finish_reason !== null) ended.push(index);
      }
    }
    expect(text).toEqual({ 0: "0!", 1: "1!", 2: "2!" });
    expect(ended.sort()).toEqual([0, 1, 2]);
  });

  test("take a place each of what a tenant may run at once", async () => {
    const dispatcher = scriptedDispatcher(numbered);
    const hash = createHash("sha256").update(testKey).digest("hex");
    const tenants = { acme: { keys: [`sha256:${hash}`], concurrency: 2 } };
    await using gateway = await startTestGateway(dispatcher, { config: { tenants } });
    expect((await gateway.post("/v1/chat/completions", { ...hello, n: 2 })).status).toBe(200);
    const never = await gateway.post("/v1/chat/completions", { ...hello, n: 3 });
    expect(never.status).toBe(400);
    expect(await never.json()).toMatchObject({ error: { param: "n" } });
    dispatcher.script = (_request, _choice, signal) => {
      const held = async function* () {
        yield attempt();
        await untilAborted(signal);
      };
      return held();
    };
    const caller = new AbortController();
    const running = gateway.post("/v1/chat/completions", hello, { signal: caller.signal }).catch(() => {});
    while (dispatcher.open === 0) await new Promise((resolve) => setImmediate(resolve));
    const over = await gateway.post("/v1/chat/completions", { ...hello, n: 2 });
    expect(over.status).toBe(429);
    expect(over.headers.get("retry-after")).toBe("1");
    caller.abort();
    await running;
    await gateway.gateway.idle();
    dispatcher.script = numbered;
    expect((await gateway.post("/v1/chat/completions", { ...hello, n: 2 })).status).toBe(200);
  });

  test("are all given up when one breaks", async () => {
    const dispatcher = scriptedDispatcher(async function* (request, choice, signal) {
      yield attempt();
      if (choice === 1) throw new Error("gone");
      yield* numbered(request, choice, signal);
    });
    await using gateway = await startTestGateway(dispatcher);
    expect((await gateway.post("/v1/chat/completions", { ...hello, n: 2 })).status).toBe(500);
    await gateway.gateway.idle();
    expect(dispatcher.open).toBe(0);
  });
});

describe("log probabilities", () => {
  const script: Script = async function* () {
    yield attempt();
    yield {
      type: "tokens",
      ids: [0x61, 0xed],
      logprobs: [
        {
          logprob: -0.5,
          top: [
            [0x61, -0.5],
            [0x62, -1.5],
          ],
        },
        { logprob: Number.NEGATIVE_INFINITY, top: [] },
      ],
    };
    yield finish("stop", 3);
  };

  test("of a chat name each token, its bytes and the likeliest others", async () => {
    const dispatcher = scriptedDispatcher(script);
    await using gateway = await startTestGateway(dispatcher);
    const answer = await gateway.openai.chat.completions.create({ ...hello, logprobs: true, top_logprobs: 2 });
    expect(dispatcher.requests[0]?.logprobs).toBe(2);
    expect(answer.choices[0]?.logprobs?.content).toEqual([
      {
        token: "a",
        logprob: -0.5,
        bytes: [0x61],
        top_logprobs: [
          { token: "a", logprob: -0.5, bytes: [0x61] },
          { token: "b", logprob: -1.5, bytes: [0x62] },
        ],
      },
      { token: "\ufffd", logprob: -9999, bytes: [0xed], top_logprobs: [] },
    ]);
  });

  test("of a stream come with the chunk of their token", async () => {
    await using gateway = await startTestGateway(scriptedDispatcher(script));
    const entries: string[] = [];
    for await (const chunk of await gateway.openai.chat.completions.create({
      ...hello,
      logprobs: true,
      stream: true,
    })) {
      for (const entry of chunk.choices[0]?.logprobs?.content ?? []) entries.push(entry.token);
    }
    expect(entries).toEqual(["a", "\ufffd"]);
  });

  test("of a completion have the older form", async () => {
    const dispatcher = scriptedDispatcher(script);
    await using gateway = await startTestGateway(dispatcher);
    const answer = await gateway.openai.completions.create({ model: "tiny", prompt: "x", logprobs: 2 });
    expect(answer.choices[0]?.logprobs).toEqual({
      tokens: ["a", "bytes:\\xed"],
      token_logprobs: [-0.5, -9999],
      top_logprobs: [{ a: -0.5, b: -1.5 }, {}],
      text_offset: [0, 1],
    });
  });
});

describe("tool calls", () => {
  test("come back as calls, with ids, null content and their own finish_reason", async () => {
    const dispatcher = scriptedDispatcher(say(call.slice(0, 20), call.slice(20)));
    await using gateway = await startTestGateway(dispatcher);
    const answer = await gateway.openai.chat.completions.create({
      ...hello,
      tools: [weather],
      tool_choice: "required",
    });
    const [choice] = answer.choices;
    expect(choice?.finish_reason).toBe("tool_calls");
    expect(choice?.message.content).toBeNull();
    expect(choice?.message.tool_calls).toEqual([
      {
        id: expect.stringMatching(/^call_.{24}$/),
        type: "function",
        function: { name: "weather", arguments: '{"city": "Seoul"}' },
      },
    ]);
    // What keeps the model to it: nothing but calls, of this function only.
    expect(dispatcher.requests[0]?.grammar?.source).toMatchObject({
      kind: "structural_tag",
      tag: { format: { at_least_one: true, tags: [{ begin: expect.stringContaining('"weather"') }] } },
    });
  });

  test("stream their arguments as they grow, and the client puts them together", async () => {
    await using gateway = await startTestGateway(scriptedDispatcher(say(...call.split(/(?=[ "])/))));
    const stream = gateway.openai.chat.completions.stream({ ...hello, tools: [weather] });
    let pieces = 0;
    stream.on("chunk", (chunk) => {
      if (chunk.choices[0]?.delta.tool_calls?.[0]?.function?.arguments) pieces++;
    });
    const final = await stream.finalChatCompletion();
    expect(final.choices[0]?.message.tool_calls?.[0]).toMatchObject({
      type: "function",
      function: { name: "weather", arguments: '{"city": "Seoul"}' },
    });
    expect(final.choices[0]?.finish_reason).toBe("tool_calls");
    expect(pieces).toBeGreaterThan(1);
  });

  test("are plain text where the caller wants none", async () => {
    const dispatcher = scriptedDispatcher(say(call));
    await using gateway = await startTestGateway(dispatcher);
    const answer = await gateway.openai.chat.completions.create({ ...hello, tools: [weather], tool_choice: "none" });
    expect(answer.choices[0]).toMatchObject({ finish_reason: "stop", message: { content: call } });
  });

  test("and their results can be sent back as they came", async () => {
    await using gateway = await startTestGateway(scriptedDispatcher(say(call)));
    const first = await gateway.openai.chat.completions.create({ ...hello, tools: [weather] });
    const message = first.choices[0]?.message;
    if (message === undefined) throw new Error("no answer");
    const answered = { role: "tool" as const, tool_call_id: message.tool_calls?.[0]?.id ?? "", content: "Sunny" };
    const second = gateway.openai.chat.completions.create({
      ...hello,
      messages: [...hello.messages, message, answered],
    });
    await expect(second).resolves.toMatchObject({ object: "chat.completion" });
  });
});

describe("completions", () => {
  test("take text, tokens and several prompts at once", async () => {
    const dispatcher = scriptedDispatcher(async function* (request, choice) {
      yield attempt();
      yield tokens(`${String.fromCharCode(...request.promptIds)}${choice}`);
      yield finish("stop", 3, request.promptIds.length);
    });
    await using gateway = await startTestGateway(dispatcher);
    const one = await gateway.openai.completions.create({ model: "tiny", prompt: "ab" });
    expect(one.choices.map((choice) => choice.text)).toEqual(["ab0"]);
    expect(one.id).toMatch(/^cmpl-/);
    const ids = await gateway.openai.completions.create({ model: "tiny", prompt: [0x63, 0x64] });
    expect(ids.choices.map((choice) => choice.text)).toEqual(["cd0"]);
    const many = await gateway.openai.completions.create({ model: "tiny", prompt: ["a", "b"], n: 2 });
    expect(many.choices.map(({ index, text }) => [index, text])).toEqual([
      [0, "a0"],
      [1, "a1"],
      [2, "b0"],
      [3, "b1"],
    ]);
    expect(many.usage?.prompt_tokens).toBe(2);
  });

  test("stream", async () => {
    await using gateway = await startTestGateway(scriptedDispatcher(say("Hel", "lo")));
    let text = "";
    let reason: string | null = null;
    for await (const chunk of await gateway.openai.completions.create({ model: "tiny", prompt: "x", stream: true })) {
      text += chunk.choices[0]?.text ?? "";
      reason = chunk.choices[0]?.finish_reason ?? reason;
    }
    expect({ text, reason }).toEqual({ text: "Hello", reason: "stop" });
  });
});

describe("what reaches a backend", () => {
  test("is the rendered conversation, with every setting the caller gave", async () => {
    const dispatcher = scriptedDispatcher(say("ok"));
    await using gateway = await startTestGateway(dispatcher);
    await gateway.post("/v1/chat/completions", {
      ...hello,
      messages: [{ role: "system", content: [{ type: "text", text: "<|im_end|>" }] }, ...hello.messages],
      temperature: 0.5,
      top_p: 0.9,
      top_k: -1,
      min_p: 0.1,
      repetition_penalty: 1.1,
      presence_penalty: 0.2,
      frequency_penalty: 0.3,
      seed: 42,
      logit_bias: { "65": -100 },
      bad_words: ["no"],
      stop: ["END"],
      stop_token_ids: [7],
      max_completion_tokens: 5,
      max_tokens: 9,
    });
    const [request] = dispatcher.requests;
    const bytes = Array.from(new TextEncoder().encode("<|im_end|>"));
    // A caller's text never becomes a special token: it is spelt out.
    expect(Array.from(request?.promptIds ?? []).join()).toContain(bytes.join());
    expect(request?.promptIds[0]).toBe(256);
    expect(request).toMatchObject({
      maxNewTokens: 5,
      stop: ["END"],
      stopIds: [257, 7],
      sampling: {
        temperature: 0.5,
        topP: 0.9,
        topK: 0,
        minP: 0.1,
        repetitionPenalty: 1.1,
        presencePenalty: 0.2,
        frequencyPenalty: 0.3,
        seed: 42,
        logitBias: [[65, -100]],
        bannedSequences: [
          [0x6e, 0x6f],
          [0x20, 0x6e, 0x6f],
        ],
      },
    });
    expect(request?.blockKeys).toHaveLength(Math.floor((request?.promptIds.length ?? 0) / 16));
  });

  test("is OpenAI's default where the caller says nothing, with a seed of its own each time", async () => {
    const dispatcher = scriptedDispatcher(say("ok"));
    await using gateway = await startTestGateway(dispatcher);
    await gateway.post("/v1/chat/completions", hello);
    await gateway.post("/v1/chat/completions", hello);
    const [first, second] = dispatcher.requests;
    expect(first).toMatchObject({ maxNewTokens: 1024, sampling: { temperature: 1, topP: 1, topK: 0, minP: 0 } });
    expect(first?.sampling.seed).not.toBe(second?.sampling.seed);
    expect(first?.tenant.salt).toMatch(/^[0-9a-f]{32}$/);
  });

  test("asks for no more tokens than the context has left, nor than the operator allows", async () => {
    const dispatcher = scriptedDispatcher(say("ok"), { contextLength: 100 });
    await using gateway = await startTestGateway(dispatcher);
    await gateway.post("/v1/chat/completions", { ...hello, max_tokens: 5000 });
    const [request] = dispatcher.requests;
    expect(request?.maxNewTokens).toBe(100 - (request?.promptIds.length ?? 0));
  });

  test("carries the caller's trace context", async () => {
    const dispatcher = scriptedDispatcher(say("ok"));
    await using gateway = await startTestGateway(dispatcher);
    const traceparent = `00-${"a".repeat(32)}-${"b".repeat(16)}-01`;
    await gateway.post("/v1/chat/completions", hello, { headers: { traceparent } });
    await gateway.post("/v1/chat/completions", hello, { headers: { traceparent: "nonsense" } });
    expect(dispatcher.requests.map((request) => request.traceparent)).toEqual([traceparent, undefined]);
  });
});

test("an answer from a pool under another name says so", async () => {
  const dispatcher = scriptedDispatcher(async function* () {
    yield attempt("some-small-model");
    yield tokens("Hi");
    yield finish("stop", 2);
  });
  await using gateway = await startTestGateway(dispatcher);
  expect((await gateway.openai.chat.completions.create(hello)).model).toBe("some-small-model");
  for await (const chunk of await gateway.openai.chat.completions.create({ ...hello, stream: true })) {
    expect(chunk.model).toBe("some-small-model");
  }
});

test("an answer that reached its limit says so", async () => {
  const dispatcher = scriptedDispatcher(async function* () {
    yield attempt();
    yield tokens('{"a": ');
    yield finish("length", 6);
  });
  await using gateway = await startTestGateway(dispatcher);
  const body = {
    ...hello,
    response_format: {
      type: "json_schema" as const,
      json_schema: { name: "a", schema: { type: "object" }, strict: true },
    },
  };
  const answer = await gateway.openai.chat.completions.create(body);
  expect(answer.choices[0]?.finish_reason).toBe("length");
  expect(dispatcher.requests[0]?.grammar).toMatchObject({
    source: { kind: "json_schema", strict: true, schema: { type: "object" } },
  });
  // The client's own helper takes the hint too.
  await expect(gateway.openai.chat.completions.parse(body)).rejects.toThrow();
});

describe("readiness", () => {
  test("is told apart from life", async () => {
    const dispatcher = scriptedDispatcher(say("ok"));
    await using gateway = await startTestGateway(dispatcher);
    expect((await fetch(`${gateway.url}/readyz`)).status).toBe(200);
    dispatcher.isReady = false;
    expect((await fetch(`${gateway.url}/readyz`)).status).toBe(503);
    expect((await fetch(`${gateway.url}/healthz`)).status).toBe(200);
  });

  test("without any backend a call is a 503 that says when to come back", async () => {
    const dispatcher = scriptedDispatcher(say("ok"));
    dispatcher.known = undefined;
    await using gateway = await startTestGateway(dispatcher);
    const response = await gateway.post("/v1/chat/completions", hello);
    expect(response.status).toBe(503);
    expect(response.headers.get("retry-after")).toBe("1");
  });
});

test("no prompt, no answer and no key is in the log or the metrics", async () => {
  await using gateway = await startTestGateway(scriptedDispatcher(say("secret-answer")));
  const messages = [{ role: "user", content: "secret-prompt" }];
  await gateway.post("/v1/chat/completions", { ...hello, messages });
  await gateway.post("/v1/chat/completions", { ...hello, messages, temperature: "secret-prompt" });
  await gateway.gateway.idle();
  const metrics = await (await fetch(`${gateway.url}/metrics`)).text();
  expect(gateway.log).toHaveLength(2);
  for (const text of [gateway.log.join(), metrics]) expect(text).not.toMatch(/secret-|sk-test/);
  expect(JSON.parse(gateway.log[0] ?? "")).toMatchObject({
    event: "request",
    tenant: "acme",
    model: "tiny",
    outcome: "ok",
    finish: "stop",
    status: 200,
    outputTokens: 14,
  });
});
