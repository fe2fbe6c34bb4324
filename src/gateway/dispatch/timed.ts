import type { Backend, GenerationEvent, GenerationRequest } from "../../backends/backend.ts";
import type { Clock } from "../../clock.ts";
import type { PoolConfig } from "../../config/schema.ts";
import { asSluiceError, SluiceError } from "../../errors.ts";
import { Deadlines } from "./deadlines.ts";

export interface TimedOptions {
  readonly backend: Backend;
  readonly request: Omit<GenerationRequest, "deadlineMs">;
  readonly deadlines: PoolConfig["deadlines"];
  readonly requestStartedAt: number;
  readonly clock: Clock;
  /** The caller's; aborting cancels the generation. */
  readonly signal: AbortSignal;
}

/**
 * One generation on one backend under its deadlines. Ends after `finish`, and only then; everything else is thrown as a
 * SluiceError, `cancelled` (499) when the caller left. Leaving the iteration cancels the generation.
 */
export async function* timedGeneration(options: TimedOptions): AsyncGenerator<GenerationEvent> {
  const { backend, request, deadlines, requestStartedAt, clock, signal } = options;
  const control = new AbortController();
  const leave = () => control.abort(cancelled(signal.reason));
  if (signal.aborted) throw cancelled(signal.reason);
  signal.addEventListener("abort", leave, { once: true });
  const watch = new Deadlines({ clock, deadlines, requestStartedAt, expire: (error) => control.abort(error) });
  try {
    const deadlineMs = Math.max(1, watch.totalLeft);
    for await (const event of backend.generate({ ...request, deadlineMs }, control.signal)) {
      if (event.type === "error") throw backendError(event);
      watch.event(event);
      yield event;
      if (event.type === "finish") return;
    }
    throw ended();
  } catch (error) {
    // What the abort broke on its way says less than why it was aborted.
    throw control.signal.aborted && control.signal.reason instanceof SluiceError
      ? control.signal.reason
      : asSluiceError(error);
  } finally {
    watch.stop();
    signal.removeEventListener("abort", leave);
  }
}

/** 499 as nginx has it: nobody reads this answer, but metrics and spans do. */
export function cancelled(cause: unknown): SluiceError {
  return new SluiceError({
    status: 499,
    type: "invalid_request_error",
    code: "cancelled",
    message: "The caller left.",
    cause,
  });
}

function ended(): SluiceError {
  return new SluiceError({
    status: 502,
    type: "server_error",
    code: "backend_stream_broken",
    message: "A backend's answer ended too early.",
    retryable: true,
  });
}

function backendError(event: Extract<GenerationEvent, { type: "error" }>): SluiceError {
  const timeout = event.code === "deadline_exceeded";
  return new SluiceError({
    status: timeout ? 504 : event.retryable ? 503 : 502,
    type: "server_error",
    code: timeout ? "backend_timeout" : "backend_error",
    message: timeout ? "The answer took longer than is allowed." : "A backend failed on this request.",
    retryable: event.retryable,
    metricLabel: `backend_${event.code}`,
    cause: event,
  });
}
