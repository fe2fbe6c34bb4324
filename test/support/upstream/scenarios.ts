import type { WireError } from "./wire.ts";

/** What one attempt on a model meets. */
export type Fault =
  | {
      readonly kind: "refuse";
      readonly status: number;
      readonly headers?: Readonly<Record<string, string>>;
      readonly error: WireError | string;
    }
  /** The connection is reset before any byte of an answer. */
  | { readonly kind: "reset" }
  /** Accepted, never answered; closed after that long. */
  | { readonly kind: "silent"; readonly ms: number }
  | { readonly kind: "answer"; readonly shape: AnswerShape };

/** How an answer departs from a healthy one; `{}` = not at all. */
export interface AnswerShape {
  readonly tokens?: number;
  readonly firstTokenAfterMs?: number;
  readonly cut?: {
    readonly afterTokens: number;
    /** `fin`: closed without HTTP's last chunk. `clean`: a proper end of the body. `silent`: nothing for `ms`, then `fin`. */
    readonly how: "fin" | "clean" | "reset" | "silent";
    readonly ms?: number;
  };
  /** This event, counted from 1, is followed by one that is no JSON. */
  readonly garbageAfterToken?: number;
  readonly error?: {
    readonly afterTokens: number;
    /** `bare`: `{"error"}`. `event`: `event: error`. `choices`: beside a chunk's choices. */
    readonly form: "bare" | "event" | "choices";
    readonly error: WireError;
  };
  readonly finish?: string;
  readonly done?: boolean;
  /** `own`: a chunk without choices. `finish`: in the last chunk with choices. `none`: not told, though asked for. */
  readonly usage?: "own" | "finish" | "running" | "none";
  /** The connection stays open behind the last event. */
  readonly lingers?: boolean;
  readonly gzip?: boolean;
  /** Text without the log probabilities that were asked for. */
  readonly forgetsLogprobs?: boolean;
}

/** Milliseconds; the figures are those of failoverbench's full run. */
export interface Timings {
  readonly retryAfterMs: number;
  readonly firstTokenMs: number;
  readonly stallMs: number;
  readonly silentMs: number;
  readonly outageMs: number;
  readonly tokenMs: number;
}
export const fullTimings: Timings = {
  retryAfterMs: 2_000,
  firstTokenMs: 20_000,
  stallMs: 30_000,
  silentMs: 120_000,
  outageMs: 60_000,
  tokenMs: 15,
};

export interface AttemptInfo {
  /** From 1, for this model. */
  readonly number: number;
  /** Milliseconds since the upstream started or was reset. */
  readonly sinceStartMs: number;
  /** The request ends in an assistant message. */
  readonly prefilled: boolean;
  readonly timings: Timings;
}

type Scenario = (attempt: AttemptInfo) => Fault;

const answer = (shape: AnswerShape = {}): Fault => ({ kind: "answer", shape });
const refuse = (status: number, error: WireError | string, headers: Record<string, string> = {}): Fault => ({
  kind: "refuse",
  status,
  error,
  headers,
});

const rateLimit: WireError = {
  message: "Rate limit reached for requests. Please try again later.",
  type: "rate_limit_error",
  code: "rate_limit_exceeded",
};
const overloaded: WireError = {
  message: "The engine is currently overloaded, please try again later.",
  type: "server_error",
  code: "overloaded",
};
export const policyReason =
  "Your request was rejected by our safety system: the prompt may hold text that is not allowed.";

/**
 * The sixteen faults of failoverbench 0.1 (scenarios/catalogue.yaml), under the same model names up to the second dash,
 * and others that gateways were reported to mishandle, under `x-` names. Of a name only the part before the second dash
 * (`fb-s08`), or an `x-` name as a whole, counts.
 */
const scenarios: Readonly<Record<string, Scenario>> = {
  "fb-ok": () => answer(),
  "fb-s01": ({ number, timings }) =>
    number > 1 ? answer() : refuse(429, rateLimit, { "retry-after": String(Math.ceil(timings.retryAfterMs / 1_000)) }),
  "fb-s02": () => refuse(429, rateLimit),
  "fb-s03": ({ number }) =>
    number > 1 ? answer() : refuse(500, { message: "The server had an error.", type: "server_error", code: null }),
  "fb-s04": () => refuse(503, overloaded),
  "fb-s05": ({ number }) => (number > 1 ? answer() : { kind: "reset" }),
  "fb-s06": ({ timings }) => ({ kind: "silent", ms: timings.silentMs }),
  "fb-s07": ({ timings }) => answer({ firstTokenAfterMs: timings.firstTokenMs }),
  "fb-s08": () => answer({ cut: { afterTokens: 40, how: "fin" } }),
  "fb-s09": ({ timings }) => answer({ cut: { afterTokens: 20, how: "silent", ms: timings.stallMs } }),
  "fb-s10": () => answer({ garbageAfterToken: 9 }),
  "fb-s11": () => answer({ done: false }),
  "fb-s12": () =>
    refuse(400, {
      message: "This model's maximum context length is 8192 tokens. However, your messages resulted in 9631 tokens.",
      type: "invalid_request_error",
      code: "context_length_exceeded",
      param: "messages",
    }),
  "fb-s13": () =>
    refuse(400, { message: policyReason, type: "invalid_request_error", code: "content_policy_violation" }),
  "fb-s14": () => answer({ cut: { afterTokens: 40, how: "fin" } }),
  "fb-s15": ({ sinceStartMs, timings }) => (sinceStartMs < timings.outageMs ? refuse(503, overloaded) : answer()),
  "fb-s16": () => refuse(503, overloaded),

  "x-clean-cut": () => answer({ cut: { afterTokens: 5, how: "clean" } }),
  "x-reset-after-5": () => answer({ cut: { afterTokens: 5, how: "reset" } }),
  // After two tokens, so that JSON and tool calls, which have four, are met in the middle as well.
  "x-early-clean-cut": () => answer({ cut: { afterTokens: 2, how: "clean" } }),
  "x-early-reset": () => answer({ cut: { afterTokens: 2, how: "reset" } }),
  "x-early-stall": ({ timings }) => answer({ cut: { afterTokens: 2, how: "silent", ms: timings.stallMs } }),
  "x-early-error": () => answer({ error: { afterTokens: 2, form: "bare", error: overloaded } }),
  "x-stall-at-once": ({ timings }) => answer({ cut: { afterTokens: 0, how: "silent", ms: timings.stallMs } }),
  "x-long": () => answer({ tokens: 200 }),
  "x-error-bare": () => answer({ error: { afterTokens: 5, form: "bare", error: overloaded } }),
  "x-error-event": () => answer({ error: { afterTokens: 5, form: "event", error: overloaded } }),
  "x-error-choices": () => answer({ error: { afterTokens: 5, form: "choices", error: overloaded } }),
  "x-error-first": () => answer({ error: { afterTokens: 0, form: "bare", error: overloaded } }),
  "x-error-policy": () =>
    answer({
      error: {
        afterTokens: 0,
        form: "bare",
        error: { message: policyReason, type: "invalid_request_error", code: "content_filter" },
      },
    }),
  "x-content-filter": () => answer({ tokens: 10, finish: "content_filter" }),
  "x-length": () => answer({ tokens: 10, finish: "length" }),
  "x-odd-finish": () => answer({ finish: "shrug" }),
  "x-usage-with-finish": () => answer({ usage: "finish" }),
  "x-usage-running": () => answer({ usage: "running" }),
  "x-no-usage": () => answer({ usage: "none" }),
  "x-lingers": () => answer({ done: false, usage: "none", lingers: true }),
  "x-gzip": () => answer({ gzip: true }),
  "x-gzip-cut": () => answer({ gzip: true, cut: { afterTokens: 20, how: "clean" } }),
  "x-forgets-logprobs": () => answer({ forgetsLogprobs: true }),
  "x-redirect": () => refuse(307, "", { location: "http://169.254.169.254/latest/meta-data/" }),
  "x-html-502": () => refuse(502, "<html><title>502 Bad Gateway</title></html>", { "content-type": "text/html" }),
  "x-quota": () =>
    refuse(429, {
      message: "You exceeded your current quota, please check your plan and billing details.",
      type: "insufficient_quota",
      code: "insufficient_quota",
    }),
  "x-retry-after-ms": () => refuse(429, rateLimit, { "retry-after": "7", "retry-after-ms": "250" }),
  "x-unprocessable": () =>
    refuse(422, {
      message: "temperature: too high",
      type: "invalid_request_error",
      code: "bad_value",
      param: "temperature",
    }),
};

const noPrefill: Scenario = ({ prefilled }) =>
  prefilled
    ? refuse(400, {
        message: "This model does not support assistant message prefill.",
        type: "invalid_request_error",
        code: "invalid_prefill",
        param: "messages",
      })
    : answer();

/** Names as they may come through a gateway: `openai/fb-s08-stream-cut`. Undefined = no such model. */
export function scenarioOf(model: string): Scenario | undefined {
  const name = model.slice(model.lastIndexOf("/") + 1);
  if (name === "fb-ok-noprefill") return noPrefill;
  const key = name.startsWith("x-") ? name : name.split("-").slice(0, 2).join("-");
  return Object.hasOwn(scenarios, key) ? scenarios[key] : undefined;
}

export const scenarioModels: readonly string[] = [...Object.keys(scenarios), "fb-ok-noprefill"];
