import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { context, propagation, trace } from "@opentelemetry/api";
import { afterEach, describe, expect, test } from "vitest";
import { say, scriptedDispatcher } from "../gateway/testing/dispatcher.ts";
import { startTestGateway, type TestGateway } from "../gateway/testing/gateway.ts";
import { createLogger } from "./logs.ts";
import { startTracing } from "./otel.ts";
import { noTracing } from "./spans.ts";

afterEach(() => {
  trace.disable();
  context.disable();
  propagation.disable();
});

/** OTLP's JSON form, as far as the tests look. */
interface Span {
  readonly name: string;
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly attributes: ReadonlyArray<{ readonly key: string; readonly value: Record<string, unknown> }>;
  readonly events: ReadonlyArray<{ readonly name: string }>;
}

const attributesOf = (span: Span | undefined): Record<string, unknown> =>
  Object.fromEntries(span?.attributes.map(({ key, value }) => [key, Object.values(value)[0]]) ?? []);

/** The spans that a collector gets while `work` talks to a gateway. */
async function collected(work: (gateway: TestGateway) => Promise<unknown>): Promise<{ spans: Span[]; raw: string }> {
  const bodies: string[] = [];
  const collector = createServer((request, response) => {
    let body = "";
    request.setEncoding("utf8").on("data", (chunk: string) => {
      body += chunk;
    });
    request.on("end", () => {
      bodies.push(body);
      response.end("{}");
    });
  });
  collector.listen(0, "127.0.0.1");
  await once(collector, "listening");
  const { port } = collector.address() as AddressInfo;
  process.env.OTEL_EXPORTER_OTLP_TRACES_PROTOCOL = "http/json";
  const started = await startTracing(`http://127.0.0.1:${port}/v1/traces`, "sluice-gateway", process.env);
  {
    await using gateway = await startTestGateway(scriptedDispatcher(say("Hi")), { tracing: started.tracing });
    await work(gateway);
    await gateway.gateway.idle();
  }
  await started.close();
  collector.close();
  const spans = bodies.flatMap((body) =>
    (JSON.parse(body) as { resourceSpans: Array<{ scopeSpans: Array<{ spans: Span[] }> }> }).resourceSpans.flatMap(
      ({ scopeSpans }) => scopeSpans.flatMap((scope) => scope.spans),
    ),
  );
  return { spans, raw: bodies.join() };
}

describe("a request's trace", () => {
  const chat = { model: "tiny", messages: [{ role: "user", content: "secret-prompt" }] };

  test("reaches the collector: eight stages under one root, in the caller's own trace, and no prompt", async () => {
    const traceId = "c".repeat(32);
    const traceparent = `00-${traceId}-${"d".repeat(16)}-01`;
    const { spans, raw } = await collected((gateway) =>
      gateway.post("/v1/chat/completions", chat, { headers: { traceparent } }),
    );
    const root = spans.find((span) => span.name === "POST chat");
    expect(root?.parentSpanId).toBe("d".repeat(16));
    const stages = spans.filter((span) => span.parentSpanId === root?.spanId);
    expect(stages.map((span) => span.name).sort()).toEqual(
      ["admit", "authenticate", "dispatch", "prepare", "receive", "relay", "route", "settle"].sort(),
    );
    expect(spans.every((span) => span.traceId === traceId)).toBe(true);
    expect(attributesOf(root)).toMatchObject({
      "sluice.tenant": "acme",
      "gen_ai.request.model": "tiny",
      "sluice.outcome": "ok",
    });
    const dispatch = stages.find((span) => span.name === "dispatch");
    expect(attributesOf(dispatch)).toMatchObject({ "sluice.pool": "east", "gen_ai.usage.output_tokens": 3 });
    expect(dispatch?.events.map((event) => event.name)).toEqual(["accepted", "first_token"]);
    expect(raw).not.toMatch(/secret-prompt|sk-test/);
  });

  test("tells in which stage a request was refused", async () => {
    const { spans } = await collected((gateway) => gateway.post("/v1/chat/completions", { ...chat, messages: 7 }));
    const failed = spans.filter((span) => attributesOf(span)["error.type"] === "invalid_type");
    expect(failed.map((span) => span.name)).toEqual(["receive", "POST chat"]);
  });

  test("costs nothing, not even the SDK, where nobody wants it", async () => {
    const started = await startTracing(undefined, "test", {});
    expect(started.tracing).toBe(noTracing);
    await started.close();
  });
});

describe("the log", () => {
  const logged = (content: boolean, fields: Record<string, string>) => {
    let line = "";
    createLogger({ write: (text) => (line = text), wall: () => 0, content }).info("event", fields);
    return JSON.parse(line);
  };

  test("is one line of JSON", () => {
    expect(logged(false, { a: "b\nc" })).toEqual({
      time: "1970-01-01T00:00:00.000Z",
      level: "info",
      event: "event",
      a: "b\nc",
    });
  });

  test("hides what may hold a prompt or a key; the operator can show prompts, never keys", () => {
    const fields = { prompt: "p", content: "c", authorization: "a", apiKey: "k", model: "m" };
    const hidden = "[redacted]";
    expect(logged(false, fields)).toMatchObject({
      prompt: hidden,
      content: hidden,
      authorization: hidden,
      apiKey: hidden,
      model: "m",
    });
    expect(logged(true, fields)).toMatchObject({ prompt: "p", content: "c", authorization: hidden, apiKey: hidden });
  });
});
