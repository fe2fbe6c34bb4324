import type { SluiceError } from "../../errors.ts";

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
  /** 0 <= random < 1. */
  readonly random: number;
}

/** A longer hint is the caller's to wait for, not the gateway's. */
const maxWaitMs = 2_500;
const backoffMs = 50;

/** What follows an attempt that failed before its first token. Pure; the retry budget is asked afterwards. */
export function nextStep({ error, attemptsLeft, otherBackend, otherPool, random }: RetryInput): NextStep {
  const onward: NextStep = otherPool ? { kind: "next-pool" } : { kind: "give-up" };
  // All backends of a pool serve one model alike; another pool may have a longer context.
  if (error.code === "context_length_exceeded" && !error.retryable) return onward;
  if (!error.retryable) return { kind: "give-up" };
  if (attemptsLeft <= 0) return onward;
  if (otherBackend) return { kind: "elsewhere" };
  // A backend that was silent for a whole deadline would only be silent again.
  if (error.code === "backend_timeout") return onward;
  if (error.retryAfterMs !== undefined && (otherPool || error.retryAfterMs > maxWaitMs)) return onward;
  return { kind: "again", waitMs: Math.max(error.retryAfterMs ?? 0, backoffMs * (1 + random)) };
}
