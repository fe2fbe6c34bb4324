import { expect, test } from "vitest";
import { attempt, type Script, say, scriptedDispatcher, tokens, untilAborted } from "../testing/dispatcher.ts";
import { buildTestApp, type TestGatewayOptions, testKey } from "../testing/gateway.ts";
import { createWorkersPlatform } from "./workers-exchange.ts";

/** The web-standard side of an exchange, driven as a Workers runtime drives it: fetch in, Response out. */
async function worker(script: Script, options: TestGatewayOptions = {}) {
  const dispatcher = scriptedDispatcher(script);
  const { app, gateway, log } = await buildTestApp(dispatcher, createWorkersPlatform(), options);
  const background: Array<Promise<unknown>> = [];
  const context = {
    waitUntil: (work: Promise<unknown>) => void background.push(work),
    passThroughOnException: () => {},
    props: {},
  };
  const ask = async (fields: Record<string, unknown>, signal?: AbortSignal): Promise<Response> => {
    const init: RequestInit = {
      method: "POST",
      headers: { authorization: `Bearer ${testKey}` },
      body: JSON.stringify({ model: "tiny", messages: [{ role: "user", content: "Hi" }], ...fields }),
      ...(signal && { signal }),
    };
    return app.fetch(new Request("http://gateway/v1/chat/completions", init), {}, context);
  };
  return { ask, dispatcher, gateway, log, background };
}

test("a stream comes through a web stream, and its end is kept alive past the response", async () => {
  const { ask, background, gateway } = await worker(say("Hel", "lo"));
  const response = await ask({ stream: true });
  expect(response.headers.get("content-type")).toContain("text/event-stream");
  const text = await response.text();
  expect(text).toContain('"content":"Hel"');
  expect(text.endsWith("data: [DONE]\n\n")).toBe(true);
  await Promise.all(background);
  expect(gateway.active).toBe(0);
});

test("an answer that breaks ends in an error event, and one that fails early has its status", async () => {
  const late = await worker(async function* () {
    yield attempt();
    yield tokens("Hel");
  });
  const text = await (await late.ask({ stream: true })).text();
  expect(text).toContain('data: {"error":');
  expect(text).not.toContain("[DONE]");
  const early = await worker(async function* () {
    yield attempt();
  });
  expect((await early.ask({ stream: true })).status).toBe(503);
});

test("a caller that leaves cancels: by the request's signal, and by cancelling the stream", async () => {
  const script: Script = async function* (_request, _choice, signal) {
    yield attempt();
    yield tokens("Hel");
    await untilAborted(signal);
  };
  const bySignal = await worker(script);
  const caller = new AbortController();
  await bySignal.ask({ stream: true }, caller.signal);
  caller.abort();
  await bySignal.gateway.idle();
  expect(bySignal.dispatcher.open).toBe(0);
  const byStream = await worker(script);
  await (await byStream.ask({ stream: true })).body?.cancel();
  await byStream.gateway.idle();
  expect(byStream.log.join()).toContain('"outcome":"cancelled"');
});

test("a reader that does not read is cut off at the bound", async () => {
  const { ask, gateway, log } = await worker(
    async function* (_request, _choice, signal) {
      yield attempt();
      while (!signal.aborted) yield tokens("x".repeat(1000));
    },
    { config: { stream: { bufferBytes: 65_536 } } },
  );
  const response = await ask({ stream: true });
  await gateway.idle();
  expect(log.join()).toContain("slow_reader");
  await expect(response.text()).rejects.toThrow();
});

test("a body over the bound is refused by its bytes", async () => {
  const { ask } = await worker(say("ok"), { config: { bounds: { bodyBytes: 1024 } } });
  expect((await ask({ user: "u".repeat(2000) })).status).toBe(413);
  expect((await ask({ user: "u" })).status).toBe(200);
});
