import type { FallbackRule } from "../../config/schema.ts";
import type { SluiceError } from "../../errors.ts";

/** A model's `fallback.on`. */
export type FallbackOn = ReadonlyArray<FallbackRule | number>;

/** What a failure means for the question whether another pool may be asked. */
export type FailureKind =
  | FallbackRule
  /** Nobody of the pool can be asked now; what made it so is forgotten. */
  | "unavailable"
  /** Somebody has read the request and will not answer it. */
  | "content_policy"
  /** All the time of the answer is gone. */
  | "spent"
  /** The caller's request, or the caller. */
  | "other";

const byCode: Readonly<Record<string, FailureKind>> = {
  content_policy_violation: "content_policy",
  context_length_exceeded: "context_length_exceeded",
  capability_missing: "capability_missing",
  backend_timeout: "timeout",
  upstream_rate_limited: "rate_limit",
  queue_full: "overload",
  draining: "overload",
  backend_overloaded: "overload",
  upstream_quota: "overload",
  backend_unreachable: "connect",
  backend_stream_broken: "connect",
  no_backend: "unavailable",
};

export function classify(error: SluiceError): FailureKind {
  const kind = Object.hasOwn(byCode, error.code) ? byCode[error.code] : undefined;
  if (kind === "timeout" && !error.retryable) return "spent";
  return kind ?? (error.status >= 500 ? "5xx" : "other");
}

/** The rules of which one is enough. */
const allowing: Readonly<Record<FailureKind, readonly FallbackRule[]>> = {
  timeout: ["timeout"],
  overload: ["overload"],
  rate_limit: ["rate_limit", "overload"],
  "5xx": ["5xx"],
  connect: ["connect"],
  context_length_exceeded: ["context_length_exceeded"],
  capability_missing: ["capability_missing"],
  // A breaker opened by any of these leaves nobody to ask.
  unavailable: ["timeout", "overload", "5xx", "connect"],
  content_policy: [],
  spent: [],
  other: [],
};

/** Whether an answer that has not begun may leave a pool that failed it so, by the model's rules. Pure. */
export function mayLeavePool(error: SluiceError, on: FallbackOn): boolean {
  const kind = classify(error);
  // Going round a refusal would make the laxest provider the policy, whatever is configured.
  if (kind === "content_policy" || kind === "spent") return false;
  if (on.includes(error.status)) return true;
  // The same request would fail anywhere, except where the next pool may have more room, or more to offer.
  const telling = kind === "context_length_exceeded" || kind === "capability_missing";
  if (!error.retryable && !telling) return false;
  return allowing[kind].some((rule) => on.includes(rule));
}
