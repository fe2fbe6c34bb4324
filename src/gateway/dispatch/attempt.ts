import type { GenerationEvent } from "../../backends/backend.ts";
import type { Clock } from "../../clock.ts";
import { asSluiceError, type SluiceError } from "../../errors.ts";
import type { DispatchEvent } from "../request.ts";
import type { Pool, Pools } from "../routing/pools.ts";
import { uncachedTokens } from "../routing/route.ts";
import type { DispatchHooks } from "./dispatch.ts";
import { Replay } from "./resume.ts";
import { coolFor, isBackendFault } from "./retry.ts";
import { generationRequest, type Run } from "./run.ts";
import type { Selection } from "./select.ts";
import { timedGeneration } from "./timed.ts";

/** Blocks of a prompt just routed count as cached until events can have told so. */
const overlayMs = 3_000;
/** Without a live feed this gateway's own routing is all there is; caches of peers are believed for about as long. */
const historyMs = 120_000;

type Finish = Extract<GenerationEvent, { type: "finish" }>;

export interface AttemptInput {
  readonly run: Run;
  readonly pool: Pool;
  readonly selection: Selection;
  /** Milliseconds the choice took. */
  readonly routeMs: number;
  readonly pools: Pools;
  readonly clock: Clock;
  readonly hooks: DispatchHooks;
}

/**
 * One attempt on one backend, with all that is counted about it: load, breaker, learned rates, routed blocks, hooks.
 * Yields what the caller has not had yet and writes it down in `run.sent`. Ends after `finish`; every failure is thrown.
 */
export async function* attempt(input: AttemptInput): AsyncGenerator<DispatchEvent> {
  const { run, pool, selection, pools, clock, hooks } = input;
  const { request, choice, sent } = run;
  const { member, way, decision } = selection;
  const { backend } = member;
  const startedAt = clock.now();
  const permit = member.breaker.begin(clock);
  const ahead = pools.ledger.loadOf(backend.id).pendingPrefillTokens;
  const contextTokens = request.promptIds.length + (way === "tokens" ? sent.count : 0);
  const prompt = { promptTokens: contextTokens, blockSize: request.blockSize };
  const entry = pools.ledger.pick(backend.id, uncachedTokens(prompt, decision.matchedBlocks));
  pools.index.routed(backend.id, request.blockKeys, startedAt + overlayMs);
  member.inFlight++;
  const number = ++run.attempts;
  let firstTokenAt: number | undefined;
  let finish: Finish | undefined;
  let failure: SluiceError | undefined;
  const came = () => {
    if (firstTokenAt !== undefined) return;
    firstTokenAt = clock.now();
    entry.remaining(0);
    permit.succeeded();
  };
  try {
    hooks.onRoute?.({ request, choice, decision, ms: input.routeMs });
    yield { type: "attempt", pool: pool.name, backend: backend.id, upstreamModel: pool.config.upstreamModel, decision };
    if (way === "restart") {
      sent.forget();
      yield { type: "restart" };
    }
    const asked = generationRequest(run, pool, way);
    if (way === "tokens") sent.asTokens(Array.from(asked.generatedIds));
    const before = way === "tokens" ? asked.generatedIds.length : 0;
    const full = way === "tokens" && before >= request.maxNewTokens;
    const replay = way === "replay" ? new Replay(sent.text() ?? "") : undefined;
    const resumed = way === "tokens" || way === "prefill" || way === "replay";
    const { deadlines } = pool.config;
    const { signal, startedAt: requestStartedAt } = run;
    for await (const event of timedGeneration({
      backend,
      request: asked,
      deadlines,
      requestStartedAt,
      clock,
      signal,
    })) {
      switch (event.type) {
        case "accepted":
          entry.remaining(contextTokens - event.cachedTokens);
          if (!pools.index.feedState(backend.id).alive) {
            pools.index.routed(backend.id, request.blockKeys, clock.now() + historyMs);
          }
          if (resumed) break;
          run.cachedTokens = event.cachedTokens;
          yield event;
          break;
        case "progress":
          if (event.prefilled > 0) entry.remaining(Math.max(0, contextTokens - event.prefilled));
          yield event;
          break;
        case "tokens":
          came();
          if (full) {
            // The caller has all that was asked for; the backend was asked only whether the grammar is at its end.
            yield cutShort(run);
            return;
          }
          sent.take(event);
          yield event;
          break;
        case "text": {
          came();
          const fresh = replay === undefined ? event : replay.take(event);
          if (fresh === undefined) break;
          sent.take(fresh);
          yield fresh;
          break;
        }
        case "finish":
          permit.succeeded();
          finish = event;
          replay?.finish();
          if (event.timings !== undefined) {
            const { usage, timings } = event;
            pools.rates.observe(backend.id, {
              prefillTokens: ahead + contextTokens - usage.cachedTokens,
              prefillMs: timings.queuedMs + timings.prefillMs,
              decodeTokens: usage.completionTokens - 1,
              decodeMs: timings.decodeMs,
              rows: pools.ledger.loadOf(backend.id).activeRows,
            });
          }
          yield resumed ? summedUp(run, event, way === "tokens" ? (full ? before - 1 : before) : undefined) : event;
          break;
        case "error":
          break;
      }
    }
  } catch (error) {
    failure = asSluiceError(error);
    member.coolUntil = Math.max(member.coolUntil, clock.now() + coolFor(failure));
    if (isBackendFault(failure)) permit.failed();
    throw failure;
  } finally {
    permit.neutral();
    entry.settle();
    pools.released(member);
    hooks.onAttempt?.({
      request,
      choice,
      attempt: number,
      pool: pool.name,
      backend: backend.id,
      startedAt,
      firstTokenAt,
      endedAt: clock.now(),
      usage: finish?.usage,
      timings: finish?.timings,
      error: failure,
    });
  }
}

/** The end of an answer whose last backend was left before it could tell one: all tokens asked for were sent. */
export function cutShort(run: Run): Finish {
  const { request, cachedTokens, sent } = run;
  const usage = { promptTokens: request.promptIds.length, cachedTokens, completionTokens: sent.count };
  return { type: "finish", reason: "length", usage };
}

/**
 * Of a resumed answer the caller is charged once: the prompt as the first attempt took it, and every token. `before` = those
 * of the attempts before; undefined where a backend of text tells figures that cannot be added up.
 */
function summedUp(run: Run, finish: Finish, before: number | undefined): Finish {
  const { request, cachedTokens } = run;
  const usage = { promptTokens: request.promptIds.length, cachedTokens };
  if (before === undefined)
    return { ...finish, usage: { ...usage, completionTokens: run.sent.count, estimated: true } };
  return { ...finish, usage: { ...usage, completionTokens: before + finish.usage.completionTokens } };
}
