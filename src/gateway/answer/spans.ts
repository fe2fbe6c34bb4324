import { isRecording, type RequestTrace, type StageSpan } from "../../telemetry/spans.ts";
import type { DispatchEvent } from "../request.ts";

type Attempt = Extract<DispatchEvent, { type: "attempt" }>;
type Finish = Extract<DispatchEvent, { type: "finish" }>;

/** The `route` and `dispatch` spans of one choice, one pair for each attempt, told by the events that pass. */
export class DispatchSpans {
  readonly #trace: RequestTrace;
  #route: StageSpan | undefined;
  #dispatch: StageSpan | undefined;

  constructor(trace: RequestTrace) {
    this.#trace = trace;
    this.#route = trace.stage("route");
  }

  attempt({ pool, backend, decision }: Attempt): void {
    // A second attempt: the first one's span ends where the next begins.
    this.#dispatch?.fail("replaced");
    this.#dispatch?.end();
    const route = this.#route ?? this.#trace.stage("route");
    this.#route = undefined;
    if (!isRecording(route)) return;
    route.set({
      "sluice.pool": pool,
      "sluice.backend": backend,
      "sluice.predicted_ms": decision.predictedMs,
      "sluice.matched_blocks": decision.matchedBlocks,
      "sluice.candidates": decision.candidates.length,
    });
    route.end();
    this.#dispatch = this.#trace.stage("dispatch");
    this.#dispatch.set({ "sluice.pool": pool, "sluice.backend": backend });
  }

  event(name: string, attributes?: Record<string, number>): void {
    this.#dispatch?.event(name, attributes);
  }

  finish({ usage, timings, reason }: Finish): void {
    if (this.#dispatch === undefined) return;
    this.#dispatch.set({
      "gen_ai.usage.input_tokens": usage.promptTokens,
      "gen_ai.usage.output_tokens": usage.completionTokens,
      "sluice.cached_tokens": usage.cachedTokens,
      "gen_ai.response.finish_reasons": [reason],
      ...(timings && {
        "sluice.engine.queued_ms": timings.queuedMs,
        "sluice.engine.prefill_ms": timings.prefillMs,
        "sluice.engine.decode_ms": timings.decodeMs,
        "sluice.engine.steps": timings.steps,
        "sluice.engine.mask_ms": timings.maskMs,
      }),
    });
  }

  fail(code: string): void {
    (this.#dispatch ?? this.#route)?.fail(code);
  }

  end(): void {
    this.#route?.end();
    this.#dispatch?.end();
  }
}
