import type { BackendInfo, GenerationEvent, StepTimings, Usage } from "../../backends/backend.ts";
import type { OpenBackend } from "../../backends/open.ts";
import type { Clock } from "../../clock.ts";
import type { Config } from "../../config/schema.ts";
import { asSluiceError, SluiceError, unavailable } from "../../errors.ts";
import type { DispatchEvent, PreparedRequest, RouteDecision } from "../request.ts";
import { type Pool, Pools } from "../routing/pools.ts";
import { uncachedTokens } from "../routing/route.ts";
import { cancelled, runAttempt } from "./attempt.ts";
import { nextStep } from "./retry.ts";
import { type Selection, select, tokensFor, vocabularyMismatch } from "./select.ts";
import { type DispatcherSnapshot, snapshotOf } from "./snapshot.ts";

/** Told as it happens; a hook must not throw. What telemetry makes of it is the gateway's. */
export interface DispatchHooks {
  onRoute?(event: { request: PreparedRequest; choice: number; decision: RouteDecision; ms: number }): void;
  onAttempt?(event: AttemptReport): void;
  onEnd?(event: { request: PreparedRequest; choice: number; attempts: number; error: SluiceError | undefined }): void;
}

export interface AttemptReport {
  readonly request: PreparedRequest;
  readonly choice: number;
  /** From 1, over all pools. */
  readonly attempt: number;
  readonly pool: string;
  readonly backend: string;
  /** Milliseconds of the platform's clock. */
  readonly startedAt: number;
  readonly firstTokenAt: number | undefined;
  readonly endedAt: number;
  readonly usage: Usage | undefined;
  readonly timings: StepTimings | undefined;
  /** Undefined = finished, or left by its reader. */
  readonly error: SluiceError | undefined;
}

export interface DispatcherOptions {
  readonly config: Config;
  readonly openBackend: OpenBackend;
  readonly clock: Clock;
  /** Of the gateway's tokenizer for a model; backends with another one are never used. Undefined = not known. */
  readonly vocabularyHash: (model: string) => string | undefined;
  readonly hooks?: DispatchHooks;
  /** 0 <= random < 1; for jitter only. */
  readonly random?: () => number;
}

export interface Dispatcher {
  /**
   * One choice of a request, from the first backend that answers. Yields an `attempt` event before each attempt, then what
   * the backend says. Ends after `finish` and only then: every failure, also one in the middle of an answer, is thrown as a
   * SluiceError, never an `error` event. Leaving the iteration, or aborting `signal`, cancels the generation.
   */
  dispatch(request: PreparedRequest, choice: number, signal: AbortSignal): AsyncIterable<DispatchEvent>;
  poolsOf(model: string): readonly string[];
  /**
   * Of the first pool that knows: the backend with the shortest context; `contextLength` is what one request may span
   * there, its KV cache considered. Undefined until one has answered.
   */
  info(model: string): BackendInfo | undefined;
  /** True when every model has a backend that produces tokens. */
  ready(): boolean;
  untilReady(signal: AbortSignal): Promise<void>;
  /** Resolves when the condition holds; looked at after every probe and whenever a KV feed comes or goes. */
  until(condition: (snapshot: DispatcherSnapshot) => boolean, signal: AbortSignal): Promise<void>;
  /** For the debug endpoint and metrics; holds no prompt and no key. */
  snapshot(): DispatcherSnapshot;
  /** Throws and keeps the running configuration when a backend cannot be opened. */
  reconfigure(config: Config): void;
  close(): Promise<void>;
}

/** Blocks of a prompt just routed count as cached until events can have told so. */
const overlayMs = 3_000;
/** Without a live feed this gateway's own routing is all there is; caches of peers are believed for about as long. */
const historyMs = 120_000;

export function createDispatcher(options: DispatcherOptions): Dispatcher {
  const { clock, vocabularyHash, hooks = {}, random = Math.random } = options;
  const pools = new Pools({ openBackend: options.openBackend, clock, random });
  pools.reconfigure(options.config);

  const usable = (model: string, pool: Pool) =>
    pool.members.filter(
      (member) =>
        member.health.ready &&
        member.info !== undefined &&
        vocabularyMismatch(member, vocabularyHash(model)) === undefined,
    );
  const ready = () => pools.models.every((model) => pools.of(model).some((pool) => usable(model, pool).length > 0));

  async function* dispatch(
    request: PreparedRequest,
    choice: number,
    signal: AbortSignal,
  ): AsyncGenerator<DispatchEvent> {
    const run: Run = { request, choice, signal, startedAt: clock.now(), attempts: 0, generatedIds: [] };
    let failure: SluiceError | undefined;
    try {
      yield* overPools(run);
    } catch (error) {
      failure = asSluiceError(error);
      throw failure;
    } finally {
      hooks.onEnd?.({ request, choice, attempts: run.attempts, error: failure });
    }
  }

  async function* overPools(run: Run): AsyncGenerator<DispatchEvent> {
    const order = pools.of(run.request.model);
    let last: SluiceError | undefined;
    for (const [position, pool] of order.entries()) {
      const outcome = yield* inPool(run, pool, position + 1 < order.length);
      if (outcome === "finished") return;
      // The first pool's word counts where a later one only had nobody to ask.
      if (last === undefined || outcome.code !== "no_backend") last = outcome;
    }
    throw last ?? unavailable("no_backend", "No backend serves this model.", { retryAfterMs: 1_000 });
  }

  /** Attempts within one pool. Returns the error when the next pool may try; throws when nobody should. */
  async function* inPool(
    run: Run,
    pool: Pool,
    otherPool: boolean,
  ): AsyncGenerator<DispatchEvent, "finished" | SluiceError> {
    const tried = new Set<string>();
    pool.budget.request(clock.now());
    let last: SluiceError | undefined;
    for (let left = pool.config.retry.attempts - 1; ; left--) {
      const selection = pick(run, pool, tried);
      if (!("member" in selection)) return last ?? nobody(selection.excluded);
      try {
        // Runs up to the ledger's count without a wait, so no other request is routed by the state before it.
        yield* attempt(run, pool, selection);
        return "finished";
      } catch (error) {
        const failure = asSluiceError(error);
        // Resuming belongs here: `run.generatedIds` holds every token the caller has.
        if (run.signal.aborted || run.generatedIds.length > 0) throw failure;
        last = failure;
        tried.add(selection.member.backend.id);
        const otherBackend = "member" in pick(run, pool, tried);
        const next = nextStep({ error: failure, attemptsLeft: left, otherBackend, otherPool, random: random() });
        if (next.kind === "give-up") throw failure;
        if (next.kind === "next-pool" || !pool.budget.retry(clock.now())) return failure;
        if (next.kind === "again") {
          await clock.sleep(next.waitMs, run.signal).catch((reason: unknown) => Promise.reject(cancelled(reason)));
          tried.clear();
        }
      }
    }
  }

  function pick(run: Run, pool: Pool, tried: ReadonlySet<string>) {
    const { request } = run;
    const now = clock.now();
    const selection = select({ pools, pool, request, now, tried, vocabularyHash: vocabularyHash(request.model) });
    return { ...selection, routeMs: clock.now() - now };
  }

  async function* attempt(
    run: Run,
    pool: Pool,
    picked: Selection & { readonly routeMs: number },
  ): AsyncGenerator<DispatchEvent> {
    const { request, choice } = run;
    const { member, decision } = picked;
    const { backend } = member;
    const startedAt = clock.now();
    const permit = member.breaker.begin(clock);
    const ahead = pools.ledger.loadOf(backend.id).pendingPrefillTokens;
    const entry = pools.ledger.pick(backend.id, uncachedTokens(promptOf(request), decision.matchedBlocks));
    pools.index.routed(backend.id, request.blockKeys, startedAt + overlayMs);
    member.inFlight++;
    run.attempts++;
    const number = run.attempts;
    let firstTokenAt: number | undefined;
    let finish: Extract<GenerationEvent, { type: "finish" }> | undefined;
    let failure: SluiceError | undefined;
    try {
      hooks.onRoute?.({ request, choice, decision, ms: picked.routeMs });
      yield {
        type: "attempt",
        pool: pool.name,
        backend: backend.id,
        upstreamModel: pool.config.upstreamModel,
        decision,
      };
      const events = runAttempt({
        backend,
        request: generationRequest(run, pool, number),
        deadlines: pool.config.deadlines,
        requestStartedAt: run.startedAt,
        clock,
        signal: run.signal,
      });
      for await (const event of events) {
        if (event.type === "accepted") {
          entry.remaining(request.promptIds.length - event.cachedTokens);
          if (!pools.index.feedState(backend.id).alive) {
            pools.index.routed(backend.id, request.blockKeys, clock.now() + historyMs);
          }
        } else if (event.type === "progress" && event.prefilled > 0) {
          entry.remaining(Math.max(0, request.promptIds.length - event.prefilled));
        } else if (event.type === "tokens") {
          if (firstTokenAt === undefined) {
            firstTokenAt = clock.now();
            entry.remaining(0);
            permit.succeeded();
          }
          run.generatedIds.push(...event.ids);
        } else if (event.type === "finish") {
          finish = event;
          permit.succeeded();
          if (event.timings !== undefined) {
            const { usage, timings } = event;
            pools.rates.observe(backend.id, {
              prefillTokens: ahead + usage.promptTokens - usage.cachedTokens,
              prefillMs: timings.queuedMs + timings.prefillMs,
              decodeTokens: usage.completionTokens - 1,
              decodeMs: timings.decodeMs,
              rows: pools.ledger.loadOf(backend.id).activeRows,
            });
          }
        }
        yield event;
      }
    } catch (error) {
      failure = asSluiceError(error);
      if (isFull(failure)) member.coolUntil = clock.now() + Math.min(failure.retryAfterMs ?? 0, 1_000);
      else if (isBackendFault(failure)) permit.failed();
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

  return {
    dispatch,
    poolsOf: (model) => pools.of(model).map((pool) => pool.name),
    info(model) {
      for (const pool of pools.of(model)) {
        const known = usable(model, pool).flatMap(({ info }) =>
          info === undefined ? [] : { ...info, contextLength: tokensFor(info) },
        );
        const shortest = known.toSorted((a, b) => a.contextLength - b.contextLength)[0];
        if (shortest !== undefined) return shortest;
      }
      return undefined;
    },
    ready,
    untilReady: (signal) => pools.until(ready, signal),
    until: (condition, signal) => pools.until(() => condition(snapshotOf(pools, clock.now())), signal),
    snapshot: () => snapshotOf(pools, clock.now()),
    reconfigure: (config) => pools.reconfigure(config),
    close: () => pools.close(),
  };
}

/** One choice on its way. */
interface Run {
  readonly request: PreparedRequest;
  readonly choice: number;
  readonly signal: AbortSignal;
  readonly startedAt: number;
  attempts: number;
  /** Every token handed to the caller. */
  readonly generatedIds: number[];
}

function promptOf(request: PreparedRequest) {
  return { promptTokens: request.promptIds.length, blockSize: request.blockSize };
}

function generationRequest(run: Run, pool: Pool, attempt: number) {
  const { request, choice } = run;
  return {
    id: `${request.id}-${choice}-${attempt}`,
    model: pool.config.upstreamModel ?? request.model,
    promptIds: request.promptIds,
    generatedIds: Uint32Array.from(run.generatedIds),
    maxNewTokens: request.maxNewTokens - run.generatedIds.length,
    sampling: { ...request.sampling, choice },
    stopIds: request.stopIds,
    grammar: request.grammar,
    logprobs: request.logprobs,
    salt: request.tenant.salt,
    priority: request.tenant.priority,
    traceparent: request.traceparent,
    text: request.text,
  };
}

const isFull = (error: SluiceError) => error.code === "queue_full" || error.code === "draining";
const isBackendFault = (error: SluiceError) => error.retryable && error.status >= 500;

/** Nobody in the pool can take the request: say what the caller can do about it. */
function nobody(candidates: RouteDecision["candidates"]): SluiceError {
  const tooLong = candidates.length > 0 && candidates.every(({ excluded }) => excluded?.startsWith("context of"));
  if (tooLong) {
    return new SluiceError({
      status: 400,
      type: "invalid_request_error",
      code: "context_length_exceeded",
      message: "The prompt and the tokens asked for are longer than the context of every backend.",
    });
  }
  return unavailable("no_backend", "No backend can take this request now.", { retryAfterMs: 1_000 });
}
