import { SluiceError } from "../../errors.ts";
import { classify, type FallbackOn, mayLeavePool } from "./fallback.ts";

export type NextStep =
  /** Another backend of this pool, at once. */
  | { readonly kind: "elsewhere" }
  /** The same pool's backends again, after a pause. */
  | { readonly kind: "again"; readonly waitMs: number }
  | { readonly kind: "next-pool" }
  /** The caller gets the error. */
  | { readonly kind: "give-up" };

export interface RetryInput {
  readonly error: SluiceError;
  /** Further attempts the pool's configuration allows. */
  readonly attemptsLeft: number;
  /** Another backend of the pool could take the request now. */
  readonly otherBackend: boolean;
  readonly otherPool: boolean;
  /** Failures that lead on to it. */
  readonly fallbackOn: FallbackOn;
  /** A part of the answer was sent before: it can wait for a backend, and only the end of that wait is its end. */
  readonly resuming: boolean;
  /** 0 <= random < 1. */
  readonly random: number;
}

/** A longer hint is the caller's to wait for, not the gateway's. */
const maxWaitMs = 2_500;
const backoffMs = 50;

/** What follows an attempt that failed before it brought the answer further. Pure; the retry budget is asked afterwards. */
export function nextStep(input: RetryInput): NextStep {
  const { error, attemptsLeft, otherBackend, otherPool, fallbackOn, resuming, random } = input;
  const kind = classify(error);
  if (kind === "content_policy" || kind === "spent") return { kind: "give-up" };
  // An answer that one backend took and began is not given up for another's complaint, which its caller cannot mend.
  const mayMoveOn = resuming || (otherPool && mayLeavePool(error, fallbackOn));
  const onward: NextStep = mayMoveOn ? { kind: "next-pool" } : { kind: "give-up" };
  // All backends of a pool serve one model alike.
  if (kind === "capability_missing" || !error.retryable) return onward;
  if (attemptsLeft <= 0) return onward;
  if (otherBackend) return { kind: "elsewhere" };
  if (resuming) return onward;
  // A backend that was silent for a whole deadline would only be silent again.
  if (kind === "timeout") return onward;
  if (error.retryAfterMs !== undefined && (mayMoveOn || error.retryAfterMs > maxWaitMs)) return onward;
  return { kind: "again", waitMs: Math.max(error.retryAfterMs ?? 0, backoffMs * (1 + random)) };
}

/**
 * A failure as its caller should hear it when `attempts` were made: where the gateway's own tries have come to nothing, and
 * nobody said when another may help, a client's would only multiply them (openai-node makes each request three times).
 */
export function withRetriesSpent(error: SluiceError, attempts: number): SluiceError {
  if (attempts < 2 || !error.retryable || error.retryAfterMs !== undefined || error.status < 500) return error;
  const { status, type, code, message, param, metricLabel, cause } = error;
  return new SluiceError({ status, type, code, message, param, metricLabel, cause, retryable: false });
}

/** It said that it takes no more for now; with daemons that is how a queue ends, with others how a limit is told. */
const fullCodes = new Set(["queue_full", "draining", "upstream_rate_limited", "backend_overloaded"]);
/** A daemon's queue moves within a step; a limit is kept for as long as it says. */
const coolMs = { daemon: 1_000, upstream: 30_000, unsaid: 1_000, silent: 5_000, gone: 1_000 };

/** Milliseconds for which others go first; 0 = this failure says nothing of the kind. */
export function coolFor(error: SluiceError): number {
  // A process that stands still is found by probes only after some seconds; every request until then would wait as long.
  if (error.code === "backend_timeout" && error.retryable) return coolMs.silent;
  // One that is gone looks idle, so that it would draw every request until a probe has found it out.
  if (error.code === "backend_unreachable" || error.code === "backend_stream_broken") return coolMs.gone;
  if (!fullCodes.has(error.code)) return 0;
  const upstream = error.code === "upstream_rate_limited" || error.code === "backend_overloaded";
  if (upstream) return Math.min(error.retryAfterMs ?? coolMs.unsaid, coolMs.upstream);
  return Math.min(error.retryAfterMs ?? 0, coolMs.daemon);
}

/** Counts against the backend's breaker. An endpoint that answers 503 for long is as good as down; a full queue is not. */
export function isBackendFault(error: SluiceError): boolean {
  if (error.code === "backend_overloaded") return true;
  return error.retryable && error.status >= 500 && !fullCodes.has(error.code) && !unfit.has(error.code);
}
/** They tell of one answer, not of the backend's health. */
const unfit = new Set(["continuation_refused", "replay_diverged", "cannot_continue", "breaker_probing"]);
