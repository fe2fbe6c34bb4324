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
  /** Says which of the pools in `split` is asked first. */
  readonly session: number;
  readonly sent: Sent;
  /** Tokens the whole answer may have: what was asked for, as far as the context of the backend that began it holds them. */
  maxNewTokens: number;
  /** Prompt tokens that the first attempt found cached: the caller is told of one answer. */
  cachedTokens: number;
  attempts: number;
  /** Position of the last pool that was asked, in the model's order. */
  reached: number;
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
  options: Pick<Run, "request" | "choice" | "signal" | "startedAt" | "session"> & {
    readonly codec: TextCodec | undefined;
  },
): Run {
  const { codec, ...rest } = options;
  return {
    ...rest,
    sent: new Sent(codec),
    maxNewTokens: rest.request.maxNewTokens,
    cachedTokens: 0,
    attempts: 0,
    reached: 0,
    futile: 0,
    breaks: 0,
    broke: undefined,
    failed: new Map(),
    refusedPrefill: new Set(),
  };
}

/** A backend broke off behind the last token that was asked for: nobody needs to be asked for more. */
export function isComplete({ request, sent, maxNewTokens }: Run): boolean {
  // Whether a grammar is at its end as well, only a backend can tell.
  return !sent.hasText && request.grammar === undefined && sent.ids.length >= maxNewTokens;
}

/**
 * Tokens the whole answer may have on a backend whose context holds `room`; below 1 = it is no place for it. An answer that
 * has begun keeps the length that it began with, so that it ends where it would have ended unbroken.
 */
export function limitIn({ request, maxNewTokens }: Run, way: Way, room: number): number {
  const left = room - request.promptIds.length;
  if (way === "fresh" || way === "restart") return Math.min(request.maxNewTokens, left);
  return left < maxNewTokens ? 0 : maxNewTokens;
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

/** What one attempt asks of its backend; `number` and `limit` are the attempt's own. */
export function generationRequest(
  run: Run,
  pool: Pool,
  { way, limit, number }: { readonly way: Way; readonly limit: number; readonly number: number },
): Omit<GenerationRequest, "deadlineMs"> {
  const { request, choice, sent } = run;
  const base = {
    id: `${request.id}-${choice}-${number}`,
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
      const left = Math.max(1, limit - ids.length);
      return { ...base, generatedIds: Uint32Array.from(ids), maxNewTokens: left, text: request.text };
    }
    case "prefill":
      return {
        ...base,
        generatedIds: Uint32Array.from(sent.ids),
        maxNewTokens: Math.max(1, limit - sent.count),
        text: { ...request.text, generated: sent.text() ?? "" },
      };
    case "fresh":
    case "restart":
    case "replay":
      return { ...base, generatedIds: new Uint32Array(0), maxNewTokens: limit, text: request.text };
  }
}
