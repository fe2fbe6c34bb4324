import { describe, expect, it } from "vitest";
import { type FaultContext, httpFault, inBandFault, readFault, retryAfterMs, safeReason } from "./fault.ts";

const context: FaultContext = {
  secrets: ["hunter2-key", "engine.internal:8000"],
  callerText: () => "My diary says that I was born in a small town by the sea.",
  continuation: false,
};
const mapped = (status: number, body: unknown, changes: Partial<FaultContext> = {}) =>
  httpFault(status, readFault(body), undefined, { ...context, ...changes });
const error = (fields: Record<string, unknown>) => ({ error: { message: "No.", type: "t", code: null, ...fields } });

it.each([
  [429, error({ code: "rate_limit_exceeded" }), { status: 429, code: "upstream_rate_limited", retryable: true }],
  [429, error({ code: "insufficient_quota" }), { status: 503, code: "upstream_quota", retryable: true }],
  [402, undefined, { status: 503, code: "upstream_quota", retryable: true }],
  [500, undefined, { status: 502, code: "backend_error", retryable: true, metricLabel: "upstream_500" }],
  [503, undefined, { status: 503, code: "backend_overloaded", retryable: true }],
  [529, undefined, { status: 503, code: "backend_overloaded", retryable: true }],
  [504, undefined, { status: 502, retryable: true }],
  [408, undefined, { status: 502, retryable: true }],
  [204, undefined, { status: 502, retryable: true }],
  [301, undefined, { status: 502, code: "upstream_redirected", retryable: true }],
  [401, error({ message: "key hunter2-key is wrong" }), { status: 502, code: "upstream_auth", retryable: true }],
  [403, undefined, { status: 502, code: "upstream_auth", retryable: true }],
  [404, error({ code: "model_not_found" }), { status: 502, code: "upstream_not_found", retryable: true }],
  [
    400,
    error({ code: "bad_value", param: "messages[0].content" }),
    { status: 400, code: "bad_value", message: "No.", param: "messages[0].content", retryable: false },
  ],
  [400, error({ code: "so bad!", param: "<script>" }), { status: 400, code: "invalid_request", param: undefined }],
  [413, undefined, { status: 413, code: "invalid_request", retryable: false }],
  [422, { detail: "too hot" }, { status: 422, message: "too hot", retryable: false }],
  [400, { error: "a bare string" }, { status: 400, message: "a bare string" }],
])("%i %j", (status, body, expected) => {
  expect(mapped(status, body)).toMatchObject(expected);
});

it.each([
  [400, error({ code: "context_length_exceeded" })],
  [
    400,
    error({
      code: 400,
      message: "This model's maximum context length is 2048 tokens. However, you requested 3000 tokens",
    }),
  ],
  [400, { object: "error", message: "This model's maximum context length is 2048 tokens.", code: 400 }],
  [400, error({ type: "exceed_context_size_error", message: "the request exceeds the available context size" })],
  [413, error({ message: "prompt is too long: 9 tokens > 8 maximum" })],
])("%i %j: the context is exceeded", (status, body) => {
  expect(mapped(status, body)).toMatchObject({ status: 400, code: "context_length_exceeded", retryable: false });
});

it.each([
  [400, error({ code: "content_policy_violation" })],
  [400, error({ code: "content_filter", innererror: { code: "ResponsibleAIPolicyViolation" } })],
  [400, error({ innererror: { code: "ResponsibleAIPolicyViolation" } })],
  [403, error({ code: 403, metadata: { reasons: ["violence"] } })],
  [400, error({ code: "invalid_prompt", message: "Flagged as potentially violating our usage policy." })],
])("%i %j: content was refused, and nobody else is asked", (status, body) => {
  expect(mapped(status, body)).toMatchObject({ status: 400, code: "content_policy_violation", retryable: false });
});

it("a refusal of what the gateway added is retried without it; other refusals stay what they are", () => {
  const continuation = { continuation: true };
  expect(mapped(400, error({ code: "invalid_prefill" }), continuation)).toMatchObject({
    status: 502,
    code: "continuation_refused",
    retryable: true,
  });
  expect(mapped(400, error({ code: "content_filter" }), continuation)).toMatchObject({
    code: "content_policy_violation",
  });
});

describe("told inside a stream", () => {
  const inBand = (body: unknown) => {
    const fault = readFault(body);
    if (fault === undefined) throw new Error("no fault");
    return inBandFault(fault, context);
  };
  it.each([
    [
      error({ message: "Engine died." }),
      { code: "backend_stream_broken", message: 'The backend\'s answer broke off: it reports "Engine died".' },
    ],
    [error({ code: 429 }), { code: "upstream_rate_limited", retryable: true }],
    [error({ code: 401, message: "hunter2-key" }), { code: "upstream_auth" }],
    [error({ code: "content_filter" }), { code: "content_policy_violation", retryable: false }],
    [error({ code: "context_length_exceeded" }), { code: "context_length_exceeded", status: 400 }],
  ])("%j", (body, expected) => expect(inBand(body)).toMatchObject(expected));

  it.each([undefined, null, [], "text", {}, { error: null }, { choices: [] }])("%j tells of no error", (body) => {
    expect(readFault(body)).toBeUndefined();
  });
});

describe("an upstream's words", () => {
  it.each([
    ["The key hunter2-key is wrong", "The key [redacted] is wrong"],
    ["Incorrect API key: sk-proj-abc***************wxyz.", "Incorrect API key: [redacted]"],
    ["Bearer abc.def was refused", "[redacted] was refused"],
    ["engine.internal:8000 is down, see http://10.0.0.7:8000/metrics", "[redacted] is down, see [address]"],
    ["connect ECONNREFUSED 10.0.0.7:8000", "connect ECONNREFUSED [address]"],
    [`token ${"aB3".repeat(20)} expired`, "token [redacted] expired"],
    ["two\r\nlines\u0000 and\u001b[31m more", "two lines and [31m more"],
    [
      "gpt-4o-2024-08-06 allows at most 16384 completion tokens",
      "gpt-4o-2024-08-06 allows at most 16384 completion tokens",
    ],
  ])("%j -> %j", (said, shown) => expect(safeReason(said, context)).toBe(shown));

  it("are of bounded length", () => {
    expect(safeReason("words and ".repeat(100_000), context)?.length).toBeLessThan(500);
  });

  it.each([
    undefined,
    "",
    "  ",
    "Bad input: I was born in a small town by the sea",
    "Invalid 'that I  was born\nin a small town'",
  ])("are not shown where they say nothing or repeat the caller: %j", (said) =>
    expect(safeReason(said, context)).toBeUndefined(),
  );
});

it.each([
  [{ "retry-after": "2" }, 2_000],
  [{ "retry-after": "1.5" }, 1_500],
  [{ "retry-after": "2", "retry-after-ms": "250" }, 250],
  [{ "retry-after": "Mon, 23 Nov 2026 10:00:07 GMT", date: "Mon, 23 Nov 2026 10:00:00 GMT" }, 7_000],
  [{ "retry-after": "Mon, 23 Nov 2026 09:00:00 GMT", date: "Mon, 23 Nov 2026 10:00:00 GMT" }, 0],
  [{ "retry-after": "Mon, 23 Nov 2026 10:00:07 GMT" }, undefined],
  [{ "retry-after": "soon" }, undefined],
  [{ "retry-after": "-1" }, undefined],
  [{ "retry-after": "1e999" }, undefined],
  [{}, undefined],
] as ReadonlyArray<[Record<string, string>, number | undefined]>)(
  "a hint to wait: %j is %s ms",
  (headers, expected) => {
    expect(retryAfterMs((name) => headers[name])).toBe(expected);
  },
);
