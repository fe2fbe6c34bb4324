import { SluiceError, unavailable } from "../../errors.ts";
import { broken } from "../ndjson.ts";
import { list, record } from "./json.ts";

/** What an OpenAI-compatible endpoint says went wrong, before anything of it is believed or shown. */
export interface Fault {
  readonly message: string | undefined;
  readonly code: string | undefined;
  readonly type: string | undefined;
  readonly param: string | undefined;
  /** A status told inside a stream, where the HTTP one was 200 already. */
  readonly status: number | undefined;
  /** Moderation told beside the code: Azure's inner error, OpenRouter's list of reasons. */
  readonly moderated: boolean;
}

/** What may be known of a request when its failure is put into words. */
export interface FaultContext {
  /** Never shown: the key, the endpoint's host. */
  readonly secrets: readonly string[];
  /** The caller's own text; a message that repeats it is not shown. */
  readonly callerText: () => string;
  /** The gateway added a part of the answer to the request. */
  readonly continuation: boolean;
}

const text = (value: unknown): string | undefined => (typeof value === "string" && value !== "" ? value : undefined);

/** `{error: {...}}`, `{error: "..."}`, `{message, code}` or `{detail}`; undefined where the JSON tells of no error. */
export function readFault(json: unknown): Fault | undefined {
  const body = record(json);
  const error = body?.error;
  const inner = record(error) ?? (body !== undefined && (error === undefined || error === null) ? body : undefined);
  const message = text(error) ?? text(inner?.message) ?? text(inner?.detail);
  const told = error !== undefined && error !== null && error !== false;
  if (!told && message === undefined) return undefined;
  const code = inner?.code;
  const innerCode = text(record(inner?.innererror)?.code);
  return {
    message,
    code: text(code) ?? (typeof code === "number" ? String(code) : undefined),
    type: text(inner?.type),
    param: text(inner?.param),
    status: typeof code === "number" ? code : typeof inner?.status === "number" ? inner.status : undefined,
    moderated: isPolicyCode(innerCode) || list(record(inner?.metadata)?.reasons) !== undefined,
  };
}

/** The error for an answer whose status was not 200. */
export function httpFault(
  status: number,
  fault: Fault | undefined,
  retryAfterMs: number | undefined,
  context: FaultContext,
): SluiceError {
  const meant = meaning(status, fault, context);
  if (meant !== undefined) return meant;
  if (status >= 300 && status < 400) return ours("upstream_redirected", "A backend's address has moved.");
  if (status === 429) return rateLimited(retryAfterMs);
  if (status === 404 || status === 405)
    return ours("upstream_not_found", "A backend does not know what it was asked for.");
  if (status === 503 || status === 529) {
    return unavailable("backend_overloaded", "The backends cannot take more work now.", {
      ...(retryAfterMs !== undefined && { retryAfterMs }),
      cause: fault,
    });
  }
  if (status === 408 || status === 425 || status < 400 || status >= 500) {
    return new SluiceError({
      status: 502,
      type: "server_error",
      code: "backend_error",
      message: "A backend failed on this request.",
      retryable: true,
      retryAfterMs,
      metricLabel: `upstream_${status}`,
      cause: fault,
    });
  }
  return new SluiceError({
    status,
    type: "invalid_request_error",
    code: safeName(fault?.code, /^[A-Za-z][\w.-]{0,63}$/) ?? "invalid_request",
    message: safeReason(fault?.message, context) ?? `A backend refused the request with status ${status}.`,
    param: safeName(fault?.param, /^[A-Za-z][\w.[\]-]{0,127}$/),
    metricLabel: `upstream_${status}`,
    cause: fault,
  });
}

/** The error for one told inside a stream that had begun with 200. */
export function inBandFault(fault: Fault, context: FaultContext): SluiceError {
  const status = fault.status ?? 500;
  const meant = meaning(status, fault, context);
  if (meant !== undefined) return meant;
  if (status === 429) return rateLimited(undefined);
  const reason = safeReason(fault.message, context)?.replace(/\.$/, "");
  return broken(reason === undefined ? "it reports an error" : `it reports "${reason}"`, fault);
}

/** What means the same in whichever way it is told. */
function meaning(status: number, fault: Fault | undefined, context: FaultContext): SluiceError | undefined {
  if (fault !== undefined && isPolicyRefusal(fault)) {
    return new SluiceError({
      status: 400,
      type: "invalid_request_error",
      code: "content_policy_violation",
      message: safeReason(fault.message, context) ?? "The model's provider refused this content.",
      param: safeName(fault.param, /^[A-Za-z][\w.[\]-]{0,127}$/),
      cause: fault,
    });
  }
  if (fault !== undefined && isContextLength(status, fault)) {
    return new SluiceError({
      status: 400,
      type: "invalid_request_error",
      code: "context_length_exceeded",
      message: safeReason(fault.message, context) ?? "The prompt is longer than the context of the model's backend.",
      param: safeName(fault.param, /^[A-Za-z][\w.[\]-]{0,127}$/),
      cause: fault,
    });
  }
  if (status === 402 || fault?.code === "insufficient_quota") {
    return unavailable("upstream_quota", "A backend's quota is used up.", { cause: fault });
  }
  // The key is the gateway's: what is said of it is the operator's business.
  if (status === 401 || status === 403) return ours("upstream_auth", "A backend refused the gateway's credentials.");
  if (context.continuation && (status === 400 || status === 422)) {
    // The caller sent no such message and must not hear of it.
    return ours("continuation_refused", "A backend does not continue answers.");
  }
  return undefined;
}

function ours(code: string, message: string): SluiceError {
  return new SluiceError({ status: 502, type: "server_error", code, message, retryable: true });
}

function rateLimited(retryAfterMs: number | undefined): SluiceError {
  return new SluiceError({
    status: 429,
    type: "rate_limit_error",
    code: "upstream_rate_limited",
    message: "The model's backends take no more requests now.",
    retryable: true,
    retryAfterMs,
  });
}

const policyCodes = new Set([
  "contentpolicyviolation",
  "contentpolicy",
  "contentfilter",
  "contentfiltered",
  "contentmoderation",
  "moderationblocked",
  "responsibleaipolicyviolation",
]);

function isPolicyCode(code: string | undefined): boolean {
  return code !== undefined && policyCodes.has(code.toLowerCase().replace(/[^a-z]/g, ""));
}

function isPolicyRefusal({ code, type, message, moderated }: Fault): boolean {
  if (moderated || isPolicyCode(code) || isPolicyCode(type)) return true;
  // OpenAI's reasoning models refuse under this code.
  return code === "invalid_prompt" && /usage polic|safety/i.test(message ?? "");
}

/** Engines agree on the words more than on the code: vLLM and SGLang send a bare 400. */
function isContextLength(status: number, { code, type, message }: Fault): boolean {
  if (
    code === "context_length_exceeded" ||
    code === "context_window_exceeded" ||
    type === "exceed_context_size_error"
  ) {
    return true;
  }
  if (status !== 400 && status !== 413 && status !== 422) return false;
  return /maximum context length|context (?:length|window|size) (?:is )?exceed|exceeds? the (?:available |model'?s )?(?:maximum )?context|prompt is too long/i.test(
    message ?? "",
  );
}

function safeName(value: string | undefined, pattern: RegExp): string | undefined {
  return value !== undefined && pattern.test(value) ? value : undefined;
}

const maxReasonLength = 400;
/** Two texts that share a run of twice this length share one of these at a multiple of it. */
const echoLength = 16;

/**
 * An upstream's own words where they may be shown: without keys, addresses and control characters, of bounded length, and
 * only where they do not repeat the caller's text, which belongs in no log. Undefined = nothing of it may be.
 */
export function safeReason(message: string | undefined, context: FaultContext): string | undefined {
  if (message === undefined) return undefined;
  let reason = plain(message.slice(0, 16 * maxReasonLength));
  for (const secret of context.secrets) if (secret !== "") reason = reason.replaceAll(secret, "[redacted]");
  reason = reason
    .replace(/\b[a-z][a-z0-9+.-]*:\/\/\S+/gi, "[address]")
    .replace(/\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b/g, "[address]")
    .replace(/\bBearer\s+\S+/gi, "[redacted]")
    .replace(/\b(?:sk|pk|rk|gsk|xai|hf|nvapi|api|key|org|proj)[-_][\w*.-]{6,}/gi, "[redacted]")
    .replace(/[\w+/=*-]{32,}/g, "[redacted]");
  if (reason.length > maxReasonLength) reason = `${reason.slice(0, maxReasonLength)}...`;
  if (reason === "" || repeats(reason, plain(context.callerText()))) return undefined;
  return reason;
}

function plain(value: string): string {
  return value.replace(/[\s\p{Cc}\p{Cf}]+/gu, " ").trim();
}

function repeats(reason: string, callerText: string): boolean {
  for (let from = 0; from + echoLength <= reason.length; from += echoLength) {
    if (callerText.includes(reason.slice(from, from + echoLength))) return true;
  }
  return false;
}

/** All strings of a value, joined; what a caller wrote lies at many depths. */
export function textOf(value: unknown): string {
  if (typeof value === "string") return value;
  if (Array.isArray(value)) return value.map(textOf).join(" ");
  const fields = record(value);
  return fields === undefined ? "" : Object.values(fields).map(textOf).join(" ");
}

/**
 * `retry-after-ms`, or `retry-after` in seconds or as a date, which is read against the answer's own `date`: whose clock is
 * wrong does not matter then. Undefined = no hint that can be read.
 */
export function retryAfterMs(header: (name: string) => string | undefined): number | undefined {
  const ms = decimal(header("retry-after-ms"));
  if (ms !== undefined) return ms;
  const after = header("retry-after");
  const seconds = decimal(after);
  if (seconds !== undefined) return seconds * 1_000;
  const wait = Date.parse(after ?? "") - Date.parse(header("date") ?? "");
  return Number.isFinite(wait) ? Math.max(0, wait) : undefined;
}

function decimal(value: string | undefined): number | undefined {
  return value !== undefined && /^\d{1,9}(?:\.\d{1,6})?$/.test(value.trim()) ? Number(value) : undefined;
}
