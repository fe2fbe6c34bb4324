import type { GenerationRequest } from "../../backends/backend.ts";
import type { SluiceError } from "../../errors.ts";
import type { PreparedRequest } from "../request.ts";
import type { Member, Pool } from "../routing/pools.ts";
import type { Way } from "./resume.ts";
import { Sent, type TextCodec } from "./sent.ts";

/** One choice on its way, over all its attempts. */
export interface Run {
  readonly request: PreparedRequest;
  readonly choice: number;
  /** The caller's. */
  readonly signal: AbortSignal;
  readonly startedAt: number;
  readonly sent: Sent;
  /** Prompt tokens that the first attempt found cached: the caller is told of one answer. */
  cachedTokens: number;
  attempts: number;
  /** Attempts since the last one that brought the answer further. */
  futile: number;
  /** Times that an answer broke after some of it was sent, and the last of them. */
  breaks: number;
  broke: { readonly error: SluiceError; readonly at: number; readonly until: number } | undefined;
  /** Backends that failed this request, and when. */
  readonly failed: Map<string, number>;
  /** Backends that declare assistant prefill and refused it. */
  readonly refusedPrefill: Set<string>;
}

export function beginRun(
  options: Pick<Run, "request" | "choice" | "signal" | "startedAt"> & { readonly codec: TextCodec | undefined },
): Run {
  const { codec, ...rest } = options;
  return {
    ...rest,
    sent: new Sent(codec),
    cachedTokens: 0,
    attempts: 0,
    futile: 0,
    breaks: 0,
    broke: undefined,
    failed: new Map(),
    refusedPrefill: new Set(),
  };
}

/** A backend broke off behind the last token that was asked for: nobody needs to be asked for more. */
export function isComplete({ request, sent }: Run): boolean {
  // Whether a grammar is at its end as well, only a backend can tell.
  return !sent.hasText && request.grammar === undefined && sent.ids.length >= request.maxNewTokens;
}

/**
 * Whether this member is out of the question because it failed this request. Before anything was sent that lasts; a broken
 * answer may come back to a backend that a probe has seen ready since.
 */
export function hasFailed(run: Run, { backend, seenReadyAt }: Member): boolean {
  const at = run.failed.get(backend.id);
  if (at === undefined) return false;
  return run.broke === undefined || seenReadyAt <= at;
}

/** What one attempt asks of its backend. */
export function generationRequest(run: Run, pool: Pool, way: Way): Omit<GenerationRequest, "deadlineMs"> {
  const { request, choice, sent } = run;
  const base = {
    id: `${request.id}-${choice}-${run.attempts}`,
    model: pool.config.upstreamModel ?? request.model,
    promptIds: request.promptIds,
    sampling: { ...request.sampling, choice },
    stopIds: request.stopIds,
    grammar: request.grammar,
    logprobs: request.logprobs,
    salt: request.tenant.salt,
    priority: request.tenant.priority,
    traceparent: request.traceparent,
  };
  switch (way) {
    case "tokens": {
      const ids = sent.tokens() ?? [];
      const left = Math.max(1, request.maxNewTokens - ids.length);
      return { ...base, generatedIds: Uint32Array.from(ids), maxNewTokens: left, text: request.text };
    }
    case "prefill":
      return {
        ...base,
        generatedIds: Uint32Array.from(sent.ids),
        maxNewTokens: Math.max(1, request.maxNewTokens - sent.count),
        text: { ...request.text, generated: sent.text() ?? "" },
      };
    case "fresh":
    case "restart":
    case "replay":
      return { ...base, generatedIds: new Uint32Array(0), maxNewTokens: request.maxNewTokens, text: request.text };
  }
}
