import { connect } from "node:net";
import OpenAI from "openai";
import { describe, expect, test } from "vitest";
import { SluiceError } from "../errors.ts";
import { attempt, finish, type Script, say, scriptedDispatcher, tokens, untilAborted } from "./testing/dispatcher.ts";
import { startTestGateway, testKey } from "./testing/gateway.ts";

const hello = { model: "tiny", messages: [{ role: "user" as const, content: "Hi" }] };
const streamed = { ...hello, stream: true as const };
const path = "/v1/chat/completions";

const broken = new SluiceError({
  status: 502,
  type: "server_error",
  code: "backend_broke_off",
  message: "The backend stopped before the answer was complete.",
  retryable: true,
});

/** Ways in which an answer can break after its first token. */
const breaks: Array<{ name: string; script: Script }> = [
  {
    name: "the dispatcher throws",
    async *script() {
      yield attempt();
      yield tokens("Hel");
      throw broken;
    },
  },
  {
    name: "the backend reports an error",
    async *script() {
      yield attempt();
      yield tokens("Hel");
      yield { type: "error", code: "engine_failed", message: "The engine failed.", retryable: true };
    },
  },
  {
    name: "the backend just ends",
    async *script() {
      yield attempt();
      yield tokens("Hel");
    },
  },
];

describe.each(breaks)("an answer that breaks after its first token: $name", ({ script }) => {
  test("ends in a bare error event, without [DONE] and without a finish_reason", async () => {
    await using gateway = await startTestGateway(scriptedDispatcher(script));
    const response = await gateway.post(path, streamed);
    expect(response.status).toBe(200);
    const events = (await response.text()).split("\n\n").filter((event) => event !== "");
    const last = JSON.parse((events.at(-1) ?? "").slice("data: ".length));
    expect(Object.keys(last)).toEqual(["error"]);
    expect(last.error).toMatchObject({ type: "server_error", code: expect.any(String), param: null });
    expect(events.join()).not.toContain("[DONE]");
    expect(events.join()).not.toContain('"finish_reason":"');
  });

  test("throws in the openai client, in both of its streaming forms", async () => {
    await using gateway = await startTestGateway(scriptedDispatcher(script));
    const read = async () => {
      let text = "";
      for await (const chunk of await gateway.openai.chat.completions.create(streamed)) {
        text += chunk.choices[0]?.delta.content ?? "";
      }
      return text;
    };
    await expect(read()).rejects.toThrow(OpenAI.APIError);
    await expect(gateway.openai.chat.completions.stream(hello).finalContent()).rejects.toThrow();
  });

  test("is a plain error status when it was not streamed", async () => {
    await using gateway = await startTestGateway(scriptedDispatcher(script));
    const response = await gateway.post(path, hello);
    expect(response.status).toBeGreaterThanOrEqual(500);
    expect(await response.json()).toMatchObject({ error: { type: "server_error" } });
  });
});

test("what fails before the first token has a status of its own, streamed or not, and tells whether to come back", async () => {
  await using gateway = await startTestGateway(
    scriptedDispatcher(async function* () {
      yield attempt();
      yield { type: "accepted", cachedTokens: 0 };
      throw new SluiceError({
        status: 503,
        type: "server_error",
        code: "no_backend",
        message: "No backend can take this request now.",
        retryable: true,
        retryAfterMs: 1_500,
      });
    }),
  );
  for (const body of [streamed, hello]) {
    const response = await gateway.post(path, body);
    expect(response.status).toBe(503);
    expect(response.headers.get("retry-after")).toBe("2");
    expect(response.headers.get("retry-after-ms")).toBe("1500");
    expect(response.headers.get("content-type")).toBe("application/json");
    expect(await response.json()).toMatchObject({ error: { code: "no_backend" } });
  }
});

test("an unexpected failure says nothing of the inside", async () => {
  await using gateway = await startTestGateway(
    // biome-ignore lint/correctness/useYield: it fails before it can
    scriptedDispatcher(async function* () {
      throw new TypeError("password of the database");
    }),
  );
  const response = await gateway.post(path, hello);
  expect(response.status).toBe(500);
  expect(response.headers.get("x-should-retry")).toBe("false");
  expect(await response.text()).not.toContain("password");
});

describe("a stop string", () => {
  test("ends the answer over token boundaries, is never shown, and cancels the generation", async () => {
    let cancelled = false;
    const dispatcher = scriptedDispatcher(async function* (_request, _choice, signal) {
      signal.addEventListener("abort", () => {
        cancelled = true;
      });
      yield attempt();
      for (const piece of ["one ", "E", "N", "D", " two"]) yield tokens(piece);
      yield finish("length", 99);
    });
    await using gateway = await startTestGateway(dispatcher);
    const answer = await gateway.openai.chat.completions.create({ ...hello, stop: ["END"] });
    expect(answer.choices[0]).toMatchObject({ message: { content: "one " }, finish_reason: "stop" });
    // What was generated was generated, shown or not.
    expect(answer.usage?.completion_tokens).toBe(7);
    expect(cancelled).toBe(true);
    expect(dispatcher.open).toBe(0);
    let shown = "";
    for await (const chunk of await gateway.openai.chat.completions.create({ ...streamed, stop: "END" })) {
      shown += chunk.choices[0]?.delta.content ?? "";
    }
    expect(shown).toBe("one ");
  });

  test("ends the count of tokens too, however many came at once", async () => {
    const dispatcher = scriptedDispatcher(async function* () {
      yield attempt();
      yield tokens("one END two");
      yield finish("length", 99);
    });
    await using gateway = await startTestGateway(dispatcher);
    const answer = await gateway.openai.chat.completions.create({ ...hello, stop: ["END"] });
    expect(answer.choices[0]).toMatchObject({ message: { content: "one " }, finish_reason: "stop" });
    expect(answer.usage?.completion_tokens).toBe(7);
  });
});

/** Where the dispatcher waits when the caller leaves. */
const windows: Array<{ name: string; script: (waiting: () => void) => Script }> = [
  {
    name: "no backend has answered",
    script: (waiting) =>
      async function* (_request, _choice, signal) {
        waiting();
        await untilAborted(signal);
        yield attempt();
      },
  },
  {
    name: "the backend has not produced a token",
    script: (waiting) =>
      async function* (_request, _choice, signal) {
        yield attempt();
        yield { type: "accepted", cachedTokens: 0 };
        waiting();
        await untilAborted(signal);
      },
  },
  {
    name: "the answer is under way",
    script: (waiting) =>
      async function* (_request, _choice, signal) {
        yield attempt();
        yield tokens("Hello");
        waiting();
        await untilAborted(signal);
      },
  },
];

describe.each(windows)("a caller that leaves while $name", ({ script }) => {
  test.each([{ stream: true }, { stream: false }])("cancels within 100 ms (stream: $stream)", async ({ stream }) => {
    let waiting = Promise.withResolvers<void>();
    let cancelled = Promise.withResolvers<number>();
    const dispatcher = scriptedDispatcher((request, choice, signal) => {
      signal.addEventListener("abort", () => cancelled.resolve(performance.now()));
      return script(waiting.resolve)(request, choice, signal);
    });
    await using gateway = await startTestGateway(dispatcher);
    const delays: number[] = [];
    // The median, since one turn may meet a machine that does something else.
    for (let turn = 0; turn < 9; turn++) {
      waiting = Promise.withResolvers();
      cancelled = Promise.withResolvers();
      const caller = new AbortController();
      const answer = gateway.post(path, { ...hello, stream }, { signal: caller.signal }).catch(() => undefined);
      await waiting.promise;
      const left = performance.now();
      caller.abort();
      delays.push((await cancelled.promise) - left);
      await answer;
      await gateway.gateway.idle();
    }
    expect(delays.toSorted((a, b) => a - b)[4]).toBeLessThan(100);
    expect(dispatcher.open).toBe(0);
    expect(gateway.log.filter((line) => line.includes('"outcome":"cancelled"'))).toHaveLength(9);
  });
});

test("two hundred callers that leave at different moments leave nothing behind", async () => {
  let started = 0;
  const dispatcher = scriptedDispatcher(async function* (_request, _choice, signal) {
    started++;
    if (started % 3 === 0) await untilAborted(signal);
    yield attempt();
    if (started % 3 === 1) await untilAborted(signal);
    for (;;) {
      yield tokens("word ");
      await new Promise((resolve) => setImmediate(resolve));
    }
  });
  await using gateway = await startTestGateway(dispatcher);
  const leave = async (index: number): Promise<void> => {
    const caller = new AbortController();
    const body = { ...hello, stream: index % 2 === 0, n: 1 + (index % 2) };
    const answer = gateway.post(path, body, { signal: caller.signal }).then(
      async (response) => {
        for await (const _ of response.body ?? []) caller.abort();
      },
      () => {},
    );
    const seen = started;
    while (started === seen && !caller.signal.aborted) await new Promise((resolve) => setImmediate(resolve));
    if (index % 4 > 0) caller.abort();
    setImmediate(() => caller.abort());
    await answer.catch(() => {});
  };
  for (let batch = 0; batch < 10; batch++) {
    await Promise.all(Array.from({ length: 20 }, (_, index) => leave(batch * 20 + index)));
  }
  await gateway.gateway.idle();
  expect(dispatcher.open).toBe(0);
  const metrics = await (await fetch(`${gateway.url}/metrics`)).text();
  for (const gauge of [
    "sluice_active_requests",
    "sluice_preparing",
    "sluice_prepare_bytes",
    "sluice_prepare_waiting",
    "sluice_reserved_tokens",
  ]) {
    expect(metrics).toMatch(new RegExp(`^${gauge} 0$`, "m"));
  }
  expect(metrics).toMatch(/^sluice_requests_total\{api="chat",model="tiny",outcome="cancelled"\} \d+$/m);
});

test("while nothing comes a comment keeps the connection open, and the answer is whole all the same", async () => {
  const go = Promise.withResolvers<void>();
  const dispatcher = scriptedDispatcher(async function* (request, choice, signal) {
    await go.promise;
    yield* say("late")(request, choice, signal);
  });
  await using gateway = await startTestGateway(dispatcher, { config: { stream: { keepAlive: "40ms" } } });
  const response = await gateway.post(path, streamed);
  expect(response.status).toBe(200);
  let text = "";
  const decoder = new TextDecoder();
  for await (const chunk of response.body ?? []) {
    text += decoder.decode(chunk, { stream: true });
    if (text.includes(": ping\n\n")) go.resolve();
  }
  expect(text.startsWith(": ping\n\n")).toBe(true);
  expect(text).toContain('"content":"late"');
  expect(text.endsWith("data: [DONE]\n\n")).toBe(true);
});

test("what fails after such a comment is an error event, since the status is gone", async () => {
  const pinged = Promise.withResolvers<void>();
  const dispatcher = scriptedDispatcher(async function* () {
    yield attempt();
    await pinged.promise;
    throw broken;
  });
  await using gateway = await startTestGateway(dispatcher, { config: { stream: { keepAlive: "40ms" } } });
  const response = await gateway.post(path, streamed);
  let text = "";
  const decoder = new TextDecoder();
  for await (const chunk of response.body ?? []) {
    text += decoder.decode(chunk, { stream: true });
    pinged.resolve();
  }
  expect(text).toContain('data: {"error":{"message"');
  expect(text).not.toContain("[DONE]");
});

test("a caller that does not read is cut off at the bound instead of filling memory", async () => {
  let sent = 0;
  const dispatcher = scriptedDispatcher(async function* (_request, _choice, signal) {
    yield attempt();
    while (!signal.aborted) {
      sent += 1000;
      yield tokens("x".repeat(1000));
      await new Promise((resolve) => setImmediate(resolve));
    }
  });
  await using gateway = await startTestGateway(dispatcher, { config: { stream: { bufferBytes: 65_536 } } });
  const body = JSON.stringify(streamed);
  const socket = connect(Number(new URL(gateway.url).port), "127.0.0.1");
  const closed = new Promise<void>((resolve) => socket.once("close", () => resolve()));
  socket.on("error", () => {});
  socket.pause();
  socket.write(
    `POST ${path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer ${testKey}\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
  );
  while (!gateway.log.join().includes("slow_reader")) await new Promise((resolve) => setImmediate(resolve));
  await gateway.gateway.idle();
  expect(dispatcher.open).toBe(0);
  // The kernel's socket buffers take some megabytes before ours fills.
  expect(sent).toBeLessThan(64 * 1024 * 1024);
  socket.resume();
  await closed;
});

test("shutting down lets an answer finish, and takes no new one meanwhile", async () => {
  const go = Promise.withResolvers<void>();
  const dispatcher = scriptedDispatcher(async function* (_request, _choice, _signal) {
    yield attempt();
    yield tokens("Hel");
    await go.promise;
    yield tokens("lo");
    yield finish("stop", 6);
  });
  await using gateway = await startTestGateway(dispatcher);
  const response = await gateway.post(path, streamed);
  const closed = gateway.listening.close(10_000);
  expect((await gateway.post("/readyz", {}).catch(() => undefined))?.status ?? 503).not.toBe(200);
  go.resolve();
  expect((await response.text()).endsWith("data: [DONE]\n\n")).toBe(true);
  await closed;
});

test("shutting down past its grace ends an open answer with an error, never cleanly", async () => {
  const dispatcher = scriptedDispatcher(async function* (_request, _choice, signal) {
    yield attempt();
    yield tokens("Hel");
    await untilAborted(signal);
  });
  await using gateway = await startTestGateway(dispatcher);
  const response = await gateway.post(path, streamed);
  const closed = gateway.listening.close(20);
  const text = await response.text();
  expect(text).toContain('"code":"shutting_down"');
  expect(text).not.toContain("[DONE]");
  await closed;
});
