import type { EngineRefusal } from "../../engine/engine.ts";
import { SluiceError } from "../../errors.ts";

interface Refusal {
  readonly status: number;
  readonly retryable: boolean;
  readonly retryAfterMs?: number;
}

/** What an engine's refusal is on the wire. `retryable` = another daemon, or this one later, may take the request. */
const refusals: Readonly<Record<EngineRefusal, Refusal>> = {
  queue_full: { status: 503, retryable: true, retryAfterMs: 1_000 },
  draining: { status: 503, retryable: true, retryAfterMs: 5_000 },
  engine_failed: { status: 503, retryable: true, retryAfterMs: 5_000 },
  // Another daemon may have a larger cache.
  kv_too_small: { status: 400, retryable: true },
  prompt_too_long: { status: 400, retryable: false },
  grammar_missing: { status: 409, retryable: false },
};

export function refusalError(code: EngineRefusal, message: string): SluiceError {
  const { status, ...rest } = refusals[code];
  return new SluiceError({
    status,
    type: status === 503 ? "server_error" : "invalid_request_error",
    code,
    message,
    ...rest,
  });
}
