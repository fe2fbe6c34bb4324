import type { GenerationEvent } from "../../backends/backend.ts";
import type { PoolConfig } from "../../config/schema.ts";
import { asSluiceError, type SluiceError } from "../../errors.ts";
import type { DispatchEvent } from "../request.ts";
import { predictPrefillMs } from "../routing/cost.ts";
import { Account, type AccountInput } from "./account.ts";
import type { DispatchHooks } from "./dispatch.ts";
import { type Lane, outrun } from "./hedge.ts";
import { Replay } from "./resume.ts";
import { generationRequest, type Run } from "./run.ts";
import type { Picked } from "./select.ts";
import { timedGeneration } from "./timed.ts";

type Finish = Extract<GenerationEvent, { type: "finish" }>;

export interface AttemptInput extends AccountInput {
  readonly selection: Picked;
  readonly hooks: Pick<DispatchHooks, "onRoute" | "onAttempt">;
  /** Where another attempt at the same answer may run beside this one. */
  readonly lane?: Lane | undefined;
}

/**
 * One attempt on one backend. Yields what the caller has not had yet and writes it down in `run.sent`. Ends after `finish`,
 * or without it when another attempt was faster; every failure is thrown, and noted in `run` before.
 */
export async function* attempt(input: AttemptInput): AsyncGenerator<DispatchEvent> {
  const { run, pool, selection, clock, hooks, lane } = input;
  const { request, choice, sent } = run;
  const { member, way, limit, decision } = selection;
  const { backend } = member;
  const resumed = way === "tokens" || way === "prefill" || way === "replay";
  const signal = lane?.signal ?? run.signal;
  const account = new Account(input);
  const number = ++run.attempts;
  let cachedTokens = 0;
  let finish: Finish | undefined;
  let failure: SluiceError | undefined;
  /** False = another attempt was faster: nothing of this one may be kept. */
  const claim = () => {
    if (lane !== undefined && !lane.claim()) return false;
    run.maxNewTokens = limit;
    if (!resumed) run.cachedTokens = cachedTokens;
    return true;
  };
  try {
    hooks.onRoute?.({ request, choice, decision, ms: selection.routeMs });
    yield { type: "attempt", pool: pool.name, backend: backend.id, upstreamModel: pool.config.upstreamModel, decision };
    if (way === "restart") {
      sent.forget();
      yield { type: "restart" };
    }
    const asked = generationRequest(run, pool, { way, limit, number });
    if (way === "tokens") sent.asTokens(Array.from(asked.generatedIds));
    const before = way === "tokens" ? asked.generatedIds.length : 0;
    const full = way === "tokens" && before >= limit;
    const replay = way === "replay" ? new Replay(sent.text() ?? "") : undefined;
    const generation = timedGeneration({
      backend,
      request: asked,
      deadlines: deadlinesOf(input, account.uncached),
      requestStartedAt: run.startedAt,
      clock,
      signal,
    });
    for await (const event of generation) {
      switch (event.type) {
        case "accepted":
          account.prefilled(event.cachedTokens);
          cachedTokens = event.cachedTokens;
          if (!resumed) yield event;
          break;
        case "progress":
          if (event.prefilled > 0) account.prefilled(event.prefilled);
          yield event;
          break;
        case "tokens":
          if (!claim()) return;
          account.firstToken();
          if (full) {
            // The caller has all that was asked for; the backend was asked only whether the grammar is at its end.
            yield cutShort(run);
            return;
          }
          sent.take(event);
          yield event;
          break;
        case "text": {
          if (!claim()) return;
          account.firstToken();
          const fresh = replay === undefined ? event : replay.take(event);
          if (fresh === undefined) break;
          sent.take(fresh);
          yield fresh;
          break;
        }
        case "finish":
          if (!claim()) return;
          account.finished(event);
          finish = event;
          replay?.finish();
          yield resumed ? summedUp(run, event, way === "tokens" ? (full ? before - 1 : before) : undefined) : event;
          break;
        case "error":
          break;
      }
    }
  } catch (error) {
    failure = signal.reason === outrun ? outrun : asSluiceError(error);
    if (!signal.aborted) {
      account.failed(failure);
      if (way === "prefill" && failure.code === "continuation_refused") run.refusedPrefill.add(backend.id);
      else run.failed.set(backend.id, clock.now());
    }
    throw failure;
  } finally {
    account.close();
    hooks.onAttempt?.({
      request,
      choice,
      attempt: number,
      pool: pool.name,
      backend: backend.id,
      startedAt: account.startedAt,
      firstTokenAt: account.firstTokenAt,
      endedAt: clock.now(),
      usage: finish?.usage,
      timings: finish?.timings,
      error: failure,
    });
  }
}

/** Weight of the predicted prefill in the deadline of a backend that tells nothing until its first token. */
const prefillPatience = 3;

/** A daemon's first-token deadline counts from its last sign of progress; a backend of text gives none. */
function deadlinesOf({ pool, pools, selection }: AttemptInput, uncached: number): PoolConfig["deadlines"] {
  const { deadlines } = pool.config;
  const { backend } = selection.member;
  if (backend.capabilities.tokenIds) return deadlines;
  const peers = pool.members.map((member) => member.backend.id);
  const predicted = predictPrefillMs(pools.rates.of(backend.id, peers), uncached);
  return { ...deadlines, firstToken: deadlines.firstToken + prefillPatience * predicted };
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
