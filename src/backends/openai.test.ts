import { setImmediate } from "node:timers/promises";
import { afterEach, describe, expect, it } from "vitest";
import { poolsConfig } from "../../test/support/prepared.ts";
import { collect, generationRequest, greedy } from "../../test/support/requests.ts";
import { type RawStep, rawAnswer, startRawUpstream } from "../../test/support/upstream/raw.ts";
import { policyReason } from "../../test/support/upstream/scenarios.ts";
import { startUpstream, type UpstreamOptions } from "../../test/support/upstream/server.ts";
import { canonicalAnswer } from "../../test/support/upstream/wire.ts";
import { virtualClock } from "../../test/support/virtual-clock.ts";
import { type Clock, systemClock } from "../clock.ts";
import type { Backend, GenerationEvent, GenerationRequest } from "./backend.ts";
import { backendOpener } from "./open.ts";
import { openUndiciOrigin } from "./undici.ts";

const never = new AbortController().signal;
const closing: Array<{ close(): Promise<void> }> = [];
afterEach(async () => {
  for (const each of closing.splice(0).reverse()) await each.close();
});

interface Settings {
  readonly upstream?: UpstreamOptions;
  readonly capabilities?: Record<string, unknown>;
  readonly pool?: Record<string, unknown>;
  readonly clock?: Clock;
}

function open(
  endpoint: string,
  { capabilities, pool = {}, clock = systemClock }: Settings = {},
  key?: string,
): Backend {
  const changes = {
    backend: "openai",
    ...(capabilities !== undefined && { capabilities }),
    ...(key !== undefined && { key: { env: "KEY" } }),
    ...pool,
  };
  const config = poolsConfig({ far: [endpoint] }, changes).pools.far;
  if (config === undefined) throw new Error("no pool");
  const backend = backendOpener({ openHttp: openUndiciOrigin, env: () => key, clock })({
    poolName: "far",
    pool: config,
    endpoint,
  });
  closing.push(backend);
  return backend;
}

async function endpoint(settings: Settings = {}) {
  const upstream = await startUpstream({ timings: { tokenMs: 0 }, ...settings.upstream });
  closing.push(upstream);
  return { upstream, backend: open(upstream.url, settings, settings.upstream?.key) };
}

async function rawEndpoint(...steps: readonly RawStep[]) {
  const upstream = await startRawUpstream(() => steps);
  closing.push(upstream);
  return { upstream, backend: open(upstream.url) };
}

const secretQuestion = "What is the number of my secret account 4711-0815?";
function chat(model: string, body: Record<string, unknown> = {}, changes: Partial<GenerationRequest> = {}) {
  const messages = [{ role: "user", content: secretQuestion }];
  const { text, ...others } = changes;
  return generationRequest({
    model,
    maxNewTokens: 200,
    ...others,
    text: { kind: "chat", body: { model: "alias", messages, ...body }, ...text },
  });
}

/** All that came before the end, and how it ended. */
async function ask(backend: Backend, request: GenerationRequest, signal = never) {
  const events: GenerationEvent[] = [];
  let error: unknown;
  try {
    for await (const event of backend.generate(request, signal)) events.push(event);
  } catch (thrown) {
    error = thrown;
  }
  const texts = events.filter((event) => event.type === "text");
  return {
    text: texts.map(({ delta }) => delta).join(""),
    texts,
    finish: events.find((event) => event.type === "finish"),
    error,
  };
}

const whole = { text: canonicalAnswer, error: undefined, finish: { type: "finish", reason: "stop" } };
const broken = { code: "backend_stream_broken", status: 503, retryable: true };

describe("a healthy endpoint", () => {
  it("gives the whole answer and its own count of tokens", async () => {
    const { upstream, backend } = await endpoint({ pool: { upstreamModel: "fb-ok" } });
    const answer = await ask(backend, chat("what callers say"));
    expect(answer).toMatchObject(whole);
    expect(answer.finish?.usage).toEqual({ promptTokens: 13, cachedTokens: 6, completionTokens: 60 });
    expect(upstream.attempts.map(({ body }) => body)).toEqual([
      {
        model: "fb-ok",
        messages: [{ role: "user", content: secretQuestion }],
        max_tokens: 200,
        stream: true,
        stream_options: { include_usage: true },
      },
    ]);
  });

  it("answers text completions", async () => {
    const { backend } = await endpoint({ capabilities: { completions: true } });
    const text = { kind: "completion", body: { prompt: ["another", "Say it."] }, promptIndex: 1 } as const;
    expect(await ask(backend, generationRequest({ model: "fb-ok", text }))).toMatchObject(whole);
  });

  it("gets its key and the trace of the request", async () => {
    const { upstream, backend } = await endpoint({ upstream: { key: "sk-right-0123456789" } });
    for (let time = 0; time < 3; time++) {
      expect(await ask(backend, chat("fb-ok", {}, { traceparent: "00-1-2-01" }))).toMatchObject(whole);
    }
    expect(new Set(upstream.attempts.map(({ headers }) => headers.traceparent))).toEqual(new Set(["00-1-2-01"]));
  });

  it.each(["x-gzip", "x-usage-with-finish", "x-usage-running", "fb-s11-no-done"])(
    "may compress, end and count in its own way: %s",
    async (model) => {
      const { backend } = await endpoint();
      const answer = await ask(backend, chat(model));
      expect(answer).toMatchObject(whole);
      expect(answer.finish?.usage).toMatchObject({ completionTokens: 60 });
      expect(answer.finish?.usage.estimated).toBeUndefined();
    },
  );

  it("that tells no usage has it estimated, and the event says so", async () => {
    const { backend } = await endpoint();
    const answer = await ask(backend, chat("x-no-usage"));
    expect(answer.finish?.usage).toEqual({ promptTokens: 40, cachedTokens: 0, completionTokens: 60, estimated: true });
  });

  it("that keeps a finished answer's connection open and silent is waited for a second, not for ever", async () => {
    const clock = virtualClock();
    const { upstream, backend } = await endpoint({ clock });
    const answering = ask(backend, chat("x-lingers"));
    const attempt = await upstream.nextAttempt();
    await until(clock, 100, answering);
    expect(await answering).toMatchObject(whole);
    expect(clock.now()).toBeLessThanOrEqual(2_000);
    expect(await attempt.ended).toMatchObject({ clientLeft: true });
  });

  it.each([
    ["x-content-filter", { reason: "length", textReason: "content_filter" }],
    ["x-length", { reason: "length" }],
  ])("tells why it ended: %s", async (model, finish) => {
    const { backend } = await endpoint();
    expect((await ask(backend, chat(model))).finish).toMatchObject(finish);
  });

  it.each(["required", { type: "function", function: { name: "weather" } }])(
    "calls tools in pieces",
    async (choice) => {
      const { backend } = await endpoint({ capabilities: { tools: true } });
      const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object" } } }];
      const { texts, finish } = await ask(backend, chat("fb-ok", { tools, tool_choice: choice }));
      const calls = texts.flatMap(({ toolCalls = [] }) => toolCalls);
      expect(calls[0]).toEqual({ index: 0, id: "call_mock_1", name: "weather", arguments: "" });
      expect(calls.map((call) => call.arguments).join("")).toBe('{"city": "Paris"}');
      expect(finish).toMatchObject({ reason: "stop", textReason: "tool_calls" });
    },
  );

  it.each(["chat", "completion"] as const)("gives log probabilities: %s", async (kind) => {
    const { backend } = await endpoint({ capabilities: { logprobs: true, completions: true } });
    const request =
      kind === "chat"
        ? chat("fb-ok", { logprobs: true, top_logprobs: 2 })
        : generationRequest({ model: "fb-ok", text: { kind, body: { prompt: "x", logprobs: 2 } } });
    const { texts } = await ask(backend, request);
    const logprobs = texts.flatMap((event) => event.logprobs ?? []);
    expect(logprobs.map(({ token }) => token).join("")).toBe(canonicalAnswer);
    expect(logprobs[1]).toMatchObject({
      token: " gateway",
      logprob: -1,
      top: [{ token: " gateway" }, { logprob: -1.125 }],
    });
  });

  it("that leaves out log probabilities which were asked for is not answering the question", async () => {
    const { backend } = await endpoint({ capabilities: { logprobs: true } });
    expect(await ask(backend, chat("x-forgets-logprobs", { logprobs: true }))).toMatchObject({
      text: "",
      error: { code: "backend_incompatible", status: 502, retryable: true },
    });
  });

  it("goes on from a part of the answer where it can", async () => {
    const { upstream, backend } = await endpoint({ capabilities: { assistantPrefill: true } });
    const generated = canonicalAnswer.slice(0, 100);
    const request = chat("fb-ok");
    const answer = await ask(backend, { ...request, text: { ...request.text, generated } });
    expect(generated + answer.text).toBe(canonicalAnswer);
    expect(upstream.attempts[0]?.body.messages).toHaveLength(2);
  });
});

describe("failures before the answer", () => {
  it.each([
    ["fb-s01-429-retry-after", { status: 429, code: "upstream_rate_limited", retryable: true, retryAfterMs: 2_000 }],
    ["fb-s02-429-persistent", { status: 429, code: "upstream_rate_limited", retryable: true, retryAfterMs: undefined }],
    ["fb-s03-500-then-200", { status: 502, code: "backend_error", retryable: true }],
    ["fb-s04-503-persistent", { status: 503, code: "backend_overloaded", retryable: true }],
    ["fb-s05-reset", { status: 503, code: "backend_unreachable", retryable: true }],
    ["fb-s12-context-length", { status: 400, code: "context_length_exceeded", retryable: false, param: "messages" }],
    [
      "fb-s13-content-filter",
      { status: 400, code: "content_policy_violation", retryable: false, message: policyReason },
    ],
    ["fb-s16-503-persistent", { status: 503, code: "backend_overloaded", retryable: true }],
    ["x-error-policy", { status: 400, code: "content_policy_violation", retryable: false, message: policyReason }],
    ["x-error-first", broken],
    ["x-retry-after-ms", { status: 429, retryAfterMs: 250 }],
    ["x-quota", { status: 503, code: "upstream_quota", retryable: true }],
    ["x-html-502", { status: 502, code: "backend_error", retryable: true }],
    ["x-redirect", { status: 502, code: "upstream_redirected", retryable: true }],
    ["x-unprocessable", { status: 422, code: "bad_value", retryable: false, param: "temperature" }],
    ["x-unheard-of", { status: 502, code: "upstream_not_found", retryable: true }],
  ])("%s", async (model, error) => {
    const { upstream, backend } = await endpoint();
    expect(await ask(backend, chat(model))).toMatchObject({ text: "", finish: undefined, error });
    expect(upstream.attempts).toHaveLength(1);
  });

  it.each(["fb-s01-429-retry-after", "fb-s03-500-then-200", "fb-s05-reset"])(
    "%s: the next attempt answers",
    async (model) => {
      const { backend } = await endpoint();
      await ask(backend, chat(model));
      expect(await ask(backend, chat(model))).toMatchObject(whole);
    },
  );

  it("fb-s15-flap: refused during the outage, served afterwards", async () => {
    const clock = virtualClock();
    const { backend } = await endpoint({ upstream: { clock, timings: { tokenMs: 0 } } });
    expect(await ask(backend, chat("fb-s15-flap"))).toMatchObject({ error: { code: "backend_overloaded" } });
    await clock.advance(60_000);
    expect(await ask(backend, chat("fb-s15-flap"))).toMatchObject(whole);
  });

  it("a refused key is the operator's fault, and nobody hears of the key", async () => {
    const { upstream } = await endpoint({ upstream: { key: "sk-right-0123456789" } });
    const backend = open(upstream.url, {}, "sk-wrong-0123456789");
    const { error } = await ask(backend, chat("fb-ok"));
    expect(error).toMatchObject({ status: 502, code: "upstream_auth", retryable: true });
    expect(JSON.stringify([error, String(error)])).not.toMatch(/sk-|127\.0\.0\.1/);
    expect(await backend.health(never)).toEqual({ ready: false, reason: "upstream_auth" });
  });

  it("a refused continuation is the gateway's own affair (S14)", async () => {
    const { backend } = await endpoint({ capabilities: { assistantPrefill: true } });
    const request = chat("fb-ok-noprefill");
    const continued = { ...request, text: { ...request.text, generated: canonicalAnswer.slice(0, 100) } };
    expect(await ask(backend, continued)).toMatchObject({
      error: { status: 502, code: "continuation_refused", retryable: true },
    });
    expect(await ask(backend, request)).toMatchObject(whole);
  });

  it("what the endpoint cannot do is not tried", async () => {
    const { upstream, backend } = await endpoint();
    const request = chat("fb-ok", { response_format: { type: "json_object" } });
    const error = { status: 400, code: "capability_missing", param: "response_format", retryable: true };
    expect(await ask(backend, request)).toMatchObject({ error });
    expect(backend.objection?.(request)).toMatchObject(error);
    expect(backend.objection?.(chat("fb-ok"))).toBeUndefined();
    expect(upstream.attempts).toHaveLength(0);
  });
});

describe("failures in the answer", () => {
  it.each(["fb-s08-stream-cut", "fb-s14-stream-cut", "x-clean-cut", "x-gzip-cut", "x-reset-after-5"])(
    "%s: what came is a part of the answer, and it ends in an error",
    async (model) => {
      const { backend } = await endpoint();
      const answer = await ask(backend, chat(model));
      expect(answer).toMatchObject({ finish: undefined, error: broken });
      expect(canonicalAnswer.startsWith(answer.text)).toBe(true);
    },
  );

  it("fb-s10-malformed-chunk: nothing garbled comes through", async () => {
    const { backend } = await endpoint();
    const answer = await ask(backend, chat("fb-s10-malformed-chunk"));
    expect(answer).toMatchObject({ finish: undefined, error: broken });
    expect(canonicalAnswer.startsWith(answer.text)).toBe(true);
    expect(await ask(backend, chat("fb-ok"))).toMatchObject(whole);
  });

  it.each(["x-error-bare", "x-error-event", "x-error-choices"])(
    "%s: an error in the stream, with its reason",
    async (model) => {
      const { backend } = await endpoint();
      const { error, finish } = await ask(backend, chat(model));
      expect(error).toMatchObject({ ...broken, message: expect.stringContaining("currently overloaded") });
      expect(finish).toBeUndefined();
    },
  );

  it("x-odd-finish: an end for a reason that nobody knows is no end", async () => {
    const { backend } = await endpoint();
    expect(await ask(backend, chat("x-odd-finish"))).toMatchObject({ finish: undefined, error: broken });
  });

  it("fb-s09-stream-stall: a stream that closes after a silence is broken", async () => {
    const clock = virtualClock();
    const { backend } = await endpoint({ upstream: { clock, timings: { tokenMs: 0 } } });
    const answering = ask(backend, chat("fb-s09-stream-stall"));
    await until(clock, 5_000, answering);
    expect(await answering).toMatchObject({ finish: undefined, error: broken });
    expect(clock.now()).toBeGreaterThanOrEqual(30_000);
  });

  it("fb-s07-slow-ttft: headers are no sign of progress, and the late answer is whole", async () => {
    const clock = virtualClock();
    const { upstream, backend } = await endpoint({ upstream: { clock, timings: { tokenMs: 0 } } });
    let first: GenerationEvent | undefined;
    const reading = (async () => {
      for await (const event of backend.generate(chat("fb-s07-slow-ttft"), never)) first ??= event;
    })();
    await upstream.nextAttempt();
    await clock.advance(19_000);
    expect(first).toBeUndefined();
    await until(clock, 1_000, reading);
    expect(first).toMatchObject({ type: "text" });
  });
});

describe("a caller that leaves closes the connection at once", () => {
  it.each([
    ["while there are no headers", "fb-s06-no-response", false],
    ["before the first token", "x-stall-at-once", false],
    ["in the middle of the answer", "fb-s09-stream-stall", true],
  ])("%s", async (_, model, afterText) => {
    const { upstream, backend } = await endpoint();
    const delays: number[] = [];
    // The median, since one turn may meet a machine that does something else.
    for (let turn = 0; turn < 9; turn++) {
      const control = new AbortController();
      const events = backend.generate(chat(model), control.signal)[Symbol.asyncIterator]();
      let next = events.next();
      const attempt = await upstream.nextAttempt();
      if (afterText) {
        expect((await next).value).toMatchObject({ type: "text" });
        next = events.next();
      }
      const started = performance.now();
      control.abort();
      await expect(next).rejects.toMatchObject({ status: 499, code: "cancelled" });
      expect(await attempt.ended).toMatchObject({ clientLeft: true });
      delays.push(performance.now() - started);
    }
    expect(delays.toSorted((a, b) => a - b)[4]).toBeLessThan(100);
  });

  it("by leaving the loop", async () => {
    const { upstream, backend } = await endpoint();
    for await (const _ of backend.generate(chat("fb-s09-stream-stall"), never)) break;
    expect(await (await upstream.nextAttempt()).ended).toMatchObject({ clientLeft: true });
  });
});

describe("whatever a socket does", () => {
  const event = (content: string, finish: string | null = null) =>
    `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content }, finish_reason: finish }] })}\n\n`;
  const answer = rawAnswer([event("한"), event("글"), event("", "stop"), "data: [DONE]\n\n"]);

  /** Without the chunk that ends the body. */
  const unended = (parts: readonly string[]) => rawAnswer(parts).subarray(0, -"0\r\n\r\n".length);

  it("a connection whose answer ended well serves the next request, though its end came late", async () => {
    const usage = `data: ${JSON.stringify({ choices: [], usage: { prompt_tokens: 1, completion_tokens: 1 } })}\n\n`;
    const bytes = rawAnswer([event("a", "stop"), usage, "data: [DONE]\n\n"]);
    const { upstream, backend } = await rawEndpoint({ do: "dribble", bytes, size: 20 });
    expect(await ask(backend, chat("any"))).toMatchObject({ text: "a", error: undefined });
    await (await upstream.nextConnection()).played;
    await virtualClock().advance(0);
    const control = new AbortController();
    const second = ask(backend, chat("any"), control.signal);
    const requests = () => upstream.connections.map(({ request }) => request().split("POST ").length - 1);
    while (requests().reduce((sum, count) => sum + count) < 2) await setImmediate();
    expect(requests()).toEqual([2]);
    control.abort();
    await second;
  });

  it("an answer that comes byte by byte is the same answer", async () => {
    const { backend } = await rawEndpoint({ do: "dribble", bytes: answer, size: 1 });
    expect(await ask(backend, chat("any"))).toMatchObject({
      text: "한글",
      finish: { reason: "stop" },
      error: undefined,
    });
  });

  it("an answer cut at any byte is whole, or a part and an error", async () => {
    const finished = new TextDecoder().decode(answer).indexOf('"stop"');
    const ends: RawStep[] = [{ do: "fin" }, { do: "reset" }];
    const cuts = Array.from({ length: Math.ceil(answer.byteLength / 7) }, (_, index) => index * 7);
    const upstream = await startRawUpstream((number) => [
      { do: "send", bytes: answer.subarray(0, cuts[number >> 1]) },
      ends[number & 1] ?? { do: "fin" },
    ]);
    closing.push(upstream);
    const backend = open(upstream.url);
    for (const cut of cuts) {
      for (const end of ends) {
        const { text, error, finish } = await ask(backend, chat("any"));
        expect("한글".startsWith(text)).toBe(true);
        expect(finish === undefined).toBe(error !== undefined);
        if (finish !== undefined) expect(text).toBe("한글");
        if (cut <= finished) expect(error).toMatchObject({ retryable: true, status: 503 });
        expect(upstream.connections.length, `${cut} ${end.do}`).toBeGreaterThan(0);
      }
    }
    expect(upstream.connections).toHaveLength(cuts.length * 2);
  });

  it.each<[string, readonly RawStep[], object]>([
    [
      "noise instead of HTTP",
      [{ do: "garbage", length: 4_000, seed: 1 }, { do: "fin" }],
      { code: "backend_unreachable" },
    ],
    [
      "noise in place of the rest",
      [
        { do: "send", bytes: answer.subarray(0, 150) },
        { do: "garbage", length: 999, seed: 2 },
      ],
      broken,
    ],
    [
      "noise as the body",
      [
        { do: "send", bytes: rawAnswer([], { framing: "close" }) },
        { do: "garbage", length: 3_000_000, seed: 3 },
        { do: "fin" },
      ],
      broken,
    ],
    [
      "a body shorter than stated",
      [{ do: "send", bytes: rawAnswer([event("a")], { framing: "length", missingBytes: 9 }) }, { do: "fin" }],
      broken,
    ],
    ["a line without end", [{ do: "send", bytes: rawAnswer([`data: ${"x".repeat(1_100_000)}`]) }], broken],
    [
      "comments without end",
      [{ do: "send", bytes: unended([`:${"x".repeat(999)}\n\n`.repeat(3_000)]) }, { do: "stall" }],
      { ...broken, message: expect.stringContaining("longer than asked for") },
    ],
    [
      "JSON instead of a stream",
      [{ do: "send", bytes: rawAnswer(['{"choices":[]}'], { headers: { "content-type": "application/json" } }) }],
      { code: "backend_incompatible", retryable: true },
    ],
    [
      "an error with status 200",
      [
        {
          do: "send",
          bytes: rawAnswer(['{"error":{"message":"slow down","code":429}}'], {
            headers: { "content-type": "application/json" },
          }),
        },
      ],
      { code: "upstream_rate_limited", status: 429 },
    ],
    [
      "an encoding that nobody knows",
      [{ do: "send", bytes: rawAnswer([event("a")], { headers: { "content-encoding": "x-zip" } }) }],
      { code: "backend_incompatible" },
    ],
    [
      "an error larger than any error",
      [{ do: "send", bytes: rawAnswer(["x".repeat(200_000)], { status: "400 Bad Request" }) }],
      { status: 400, code: "invalid_request", message: "A backend refused the request with status 400." },
    ],
  ])("%s ends in an error", async (_, steps, error) => {
    const { backend } = await rawEndpoint(...steps);
    expect(await ask(backend, chat("any"))).toMatchObject({ finish: undefined, error });
  });

  it.each([
    ["garbage", "data: {oops\n\n"],
    ["nothing but the reset", ""],
  ])("%s behind a finished answer takes nothing from it", async (_, garbage) => {
    const bytes = unended([event("a"), event("b", "stop"), ...(garbage === "" ? [] : [garbage])]);
    const { backend } = await rawEndpoint({ do: "send", bytes }, { do: "reset" });
    expect(await ask(backend, chat("any"))).toMatchObject({ text: "ab", finish: { reason: "stop" }, error: undefined });
  });

  it("an error whose body never comes is told by its status, in a second", async () => {
    const clock = virtualClock();
    const upstream = await startRawUpstream(() => [
      { do: "send", bytes: rawAnswer(["{"], { status: "503 Busy", framing: "length", missingBytes: 50 }) },
      { do: "stall" },
    ]);
    closing.push(upstream);
    const answering = ask(open(upstream.url, { clock }), chat("any"));
    const connection = await upstream.nextConnection();
    await until(clock, 100, answering);
    expect(await answering).toMatchObject({ error: { status: 503, code: "backend_overloaded" } });
    await connection.closed;
  });

  it("an endpoint that is not there is unreachable", async () => {
    const upstream = await startRawUpstream(() => []);
    await upstream.close();
    expect(await ask(open(upstream.url), chat("any"))).toMatchObject({
      error: { code: "backend_unreachable", retryable: true },
    });
  });
});

describe("what the gateway learns of an endpoint", () => {
  it("its health is asked for at /models, not more often than every ten seconds", async () => {
    const clock = virtualClock();
    const { upstream, backend } = await endpoint({ clock });
    expect(await backend.health(never)).toEqual({ ready: true });
    await upstream.close();
    closing.splice(closing.indexOf(upstream), 1);
    expect(await backend.health(never)).toEqual({ ready: true });
    await clock.advance(10_000);
    await expect(backend.health(never)).rejects.toMatchObject({ code: "backend_unreachable" });
  });

  it.each([
    ["is not asked for where the configuration says so", "none", "503 Busy", { ready: true }],
    ["is asked for where the configuration says", "/nowhere", "404 Not Found", { ready: true }],
    ["is in doubt where the endpoint fails", "/status", "503 Busy", { ready: false, reason: "upstream_503" }],
    ["does not suffer from a rate limit", "/status", "429 Slow Down", { ready: true }],
  ])("its health %s", async (_, health, status, expected) => {
    const upstream = await startRawUpstream(() => [{ do: "send", bytes: rawAnswer([], { status }) }, { do: "fin" }]);
    closing.push(upstream);
    expect(await open(upstream.url, { pool: { health } }).health(never)).toEqual(expected);
    const asked = upstream.connections.map(({ request }) => request().split(" ")[1]);
    expect(asked).toEqual(health === "none" ? [] : [`/v1${health}`]);
  });

  it("its context is what is configured, else what its list of models says, else not known", async () => {
    const upstreamModel = { pool: { upstreamModel: "fb-ok" } };
    const told = await endpoint({ ...upstreamModel, upstream: { contextLength: 4_096 } });
    expect(await told.backend.info(never)).toMatchObject({ model: "fb-ok", contextLength: 4_096, kvTokens: 4_096 });
    const configured = open(told.upstream.url, { ...upstreamModel, capabilities: { contextLength: 2_048 } });
    expect(await configured.info(never)).toMatchObject({ contextLength: 2_048 });
    const silent = await endpoint(upstreamModel);
    expect((await silent.backend.info(never)).contextLength).toBeGreaterThan(1e9);
  });

  it("its load is not known, and that is said", async () => {
    const { backend } = await endpoint({ capabilities: { jsonSchema: true, assistantPrefill: "prefix" } });
    expect(await backend.load(never)).toEqual({
      runningRows: 0,
      queuedRows: 0,
      pendingPrefillTokens: 0,
      freeKvTokens: 0,
    });
    expect(backend.capabilities).toMatchObject({
      tokenIds: false,
      reportsLoad: false,
      structuredOutput: ["json_schema"],
      assistantPrefill: true,
    });
  });
});

it("choices of one request differ in their seeds", async () => {
  const { upstream, backend } = await endpoint({ capabilities: { seed: true } });
  for (const choice of [0, 1]) {
    await collect(backend.generate(chat("fb-ok", { seed: 7 }, { sampling: { ...greedy, choice } }), never));
  }
  expect(upstream.attempts.map(({ body }) => body.seed)).toEqual([7, 8]);
});

/** Lets time pass in steps until the work is done, since what a step starts may first have to travel over a socket. */
async function until(clock: ReturnType<typeof virtualClock>, stepMs: number, work: Promise<unknown>): Promise<void> {
  let done = false;
  const settled = work.then(
    () => {
      done = true;
    },
    () => {
      done = true;
    },
  );
  for (let step = 0; step < 200 && !done; step++) await clock.advance(stepMs);
  await settled;
}
