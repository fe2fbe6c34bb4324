import type { BackendInfo, StepTimings, Usage } from "../../backends/backend.ts";
import type { OpenBackend } from "../../backends/open.ts";
import type { Clock } from "../../clock.ts";
import type { Config, ModelConfig } from "../../config/schema.ts";
import { asSluiceError, type SluiceError, unavailable } from "../../errors.ts";
import type { DispatchEvent, PreparedRequest, RouteDecision } from "../request.ts";
import { within } from "../routing/health.ts";
import { type Member, type Pool, Pools } from "../routing/pools.ts";
import { attempt, cutShort } from "./attempt.ts";
import { StreamBreaks } from "./breaks.ts";
import { type FallbackOn, mayLeavePool } from "./fallback.ts";
import { type HedgeOutcome, Hedging, hedged, type Lane } from "./hedge.ts";
import { untilWhole } from "./hold.ts";
import { wayOn } from "./resume.ts";
import { nextStep, withRetriesSpent } from "./retry.ts";
import { beginRun, hasFailed, isComplete, limitIn, type Run } from "./run.ts";
import { type Nobody, nobody, type Picked, select, tokensFor, vocabularyMismatch } from "./select.ts";
import type { TextCodec } from "./sent.ts";
import { type ShadowReport, Shadows } from "./shadow.ts";
import { type DispatcherSnapshot, snapshotOf } from "./snapshot.ts";
import { inSplitOrder, sessionOf } from "./split.ts";
import { cancelled } from "./timed.ts";

/** Told as it happens; a hook must not throw. What telemetry makes of it is the gateway's. */
export interface DispatchHooks {
  onRoute?(event: { request: PreparedRequest; choice: number; decision: RouteDecision; ms: number }): void;
  onAttempt?(event: AttemptReport): void;
  onEnd?(event: { request: PreparedRequest; choice: number; attempts: number; error: SluiceError | undefined }): void;
  /** A second attempt beside a late one is over; `won` = the caller got its answer. */
  onHedge?(event: { pool: string; outcome: HedgeOutcome }): void;
  onShadow?(event: ShadowReport): void;
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
  /** Undefined = finished, or left by its reader; `outrun` = another attempt at the same answer was faster. */
  readonly error: SluiceError | undefined;
}

export interface DispatcherOptions {
  readonly config: Config;
  readonly openBackend: OpenBackend;
  readonly clock: Clock;
  /** Of the gateway's tokenizer for a model; backends with another one are never used. Undefined = not known. */
  readonly vocabularyHash: (model: string) => string | undefined;
  /** The gateway's tokenizer for a model: an answer can then go on between backends of tokens and of text. */
  readonly codec?: (model: string) => TextCodec | undefined;
  readonly hooks?: DispatchHooks;
  /** 0 <= random < 1; for jitter only. */
  readonly random?: () => number;
  /** A thread that shares its tables with others brings its own; the dispatcher configures and closes it. */
  readonly pools?: Pools | undefined;
}

export interface Dispatcher {
  /**
   * One choice of a request, from the first backend that answers; when it breaks off, from the next that can go on. Yields
   * an `attempt` event before each attempt, then what the backend says that the caller has not had yet. Ends after `finish`
   * and only then: a failure that nobody could mend is thrown as a SluiceError, never an `error` event. Leaving the
   * iteration, or aborting `signal`, cancels the generation.
   */
  dispatch(request: PreparedRequest, choice: number, signal: AbortSignal): AsyncIterable<DispatchEvent>;
  poolsOf(model: string): readonly string[];
  /**
   * Of the first pool that can answer now; but `contextLength` is the most that one request may span on any backend of the
   * model, its KV cache considered: dispatch passes over those that are too small. Undefined while nobody can answer.
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

/** Attempts in a row that bring an answer no further, over all pools and rounds: a last bound on what one request may cost. */
const maxFutileAttempts = 16;

export function createDispatcher(options: DispatcherOptions): Dispatcher {
  const { clock, vocabularyHash, codec, hooks = {}, random = Math.random } = options;
  let { models } = options.config;
  const pools = options.pools ?? new Pools({ openBackend: options.openBackend, clock, random });
  pools.reconfigure(options.config);
  const breaks = new StreamBreaks();
  const hedgings = new Map<string, Hedging>();
  const begin = (run: Run, pool: Pool, selection: Picked, told: DispatchHooks) => (lane?: Lane) =>
    attempt({ run, pool, selection, pools, breaks, clock, hooks: told, lane });
  const shadows = new Shadows({
    clock,
    poolNamed: (name) => pools.all.find((pool) => pool.name === name),
    pick,
    attempt: (run, pool, selection, lane) => begin(run, pool, selection, {})(lane),
    ended: (report) => hooks.onShadow?.(report),
  });

  const settings = (model: string): ModelConfig | undefined =>
    Object.hasOwn(models, model) ? models[model] : undefined;
  const matching = (model: string, pool: Pool) =>
    pool.members.filter((member) => vocabularyMismatch(member, vocabularyHash(model)) === undefined);
  const usable = (model: string, pool: Pool) =>
    matching(model, pool).filter(({ health, info }) => health.ready && info !== undefined);
  const ready = () => pools.models.every((model) => pools.of(model).some((pool) => usable(model, pool).length > 0));

  async function* dispatch(
    request: PreparedRequest,
    choice: number,
    signal: AbortSignal,
  ): AsyncGenerator<DispatchEvent> {
    const model = settings(request.model);
    const kept = request.held !== true && model?.resume.hold === true;
    const session = model?.split === undefined ? 0 : sessionOf(request);
    const run = beginRun({
      request: kept ? { ...request, held: true } : request,
      choice,
      signal,
      session,
      startedAt: clock.now(),
      codec: codec?.(request.model),
    });
    let failure: SluiceError | undefined;
    try {
      if (model?.shadow !== undefined && choice === 0) shadows.offer(request, model.shadow, signal);
      yield* kept ? untilWhole(answer(run)) : answer(run);
    } catch (error) {
      failure = withRetriesSpent(asSluiceError(error), run.attempts);
      throw failure;
    } finally {
      hooks.onEnd?.({ request, choice, attempts: run.attempts, error: failure });
    }
  }

  /** Round after round: one for an answer that never breaks, and one more for each time that it does. */
  async function* answer(run: Run): AsyncGenerator<DispatchEvent> {
    for (;;) {
      const end = yield* round(run);
      if (end === "finished") return;
      if (end !== "broke") {
        if (run.broke === undefined) throw end;
        await untilSomebody(run);
      } else if (isComplete(run)) {
        yield cutShort(run);
        return;
      }
    }
  }

  /** The pools in order. The error is for a caller who has nothing yet, when nobody could or may answer. */
  async function* round(run: Run): AsyncGenerator<DispatchEvent, "finished" | "broke" | SluiceError> {
    const order = poolsFor(run);
    let last: SluiceError | undefined;
    for (const [position, pool] of order.entries()) {
      run.reached = Math.max(run.reached, position);
      const outcome = yield* inPool(run, pool, position + 1 < order.length);
      if (outcome === "finished" || outcome === "broke") return outcome;
      last = last === undefined ? outcome : weightier(last, outcome);
      if (run.broke === undefined && !mayLeavePool(outcome, fallbackOn(run))) break;
    }
    return last ?? unavailable("no_backend", "No backend serves this model.", { retryAfterMs: 1_000 });
  }

  /** A broken answer may go wherever a failure like its last one may lead, and where it has been. */
  function poolsFor(run: Run): readonly Pool[] {
    const { model } = run.request;
    const order = inSplitOrder(pools.of(model), settings(model)?.split, run.session);
    if (run.broke === undefined || mayLeavePool(run.broke.error, fallbackOn(run))) return order;
    return order.slice(0, run.reached + 1);
  }

  /**
   * Attempts within one pool. Returns `broke` when one brought the answer further, or a daemon had taken it on, and then
   * failed; the error when the next pool may try; throws when nobody should.
   */
  async function* inPool(
    run: Run,
    pool: Pool,
    otherPool: boolean,
  ): AsyncGenerator<DispatchEvent, "finished" | "broke" | SluiceError> {
    const resuming = run.broke !== undefined;
    if (!resuming) {
      pool.budget.request(clock.now());
      hedgingOf(pool)?.request();
    }
    const tries = { left: pool.config.retry.attempts - 1 };
    let last: SluiceError | undefined;
    for (; ; tries.left--) {
      const selection = pick(run, pool);
      if (!("member" in selection)) return last ?? nobody(selection);
      const { progress } = run.sent;
      try {
        // Runs up to the ledger's count without a wait, so no other request is routed by the state before it.
        yield* attemptOrTwo(run, pool, selection, tries);
        return "finished";
      } catch (error) {
        const failure = asSluiceError(error);
        if (run.signal.aborted) throw failure;
        if (run.sent.progress > progress || isLost(run, selection.member, failure)) {
          breakOff(run, pool, failure);
          return "broke";
        }
        if (++run.futile > maxFutileAttempts) throw failure;
        last = failure;
        if (selection.way === "prefill" && failure.code === "continuation_refused") {
          // It may still tell its answer anew, and that is no second try of the same thing.
          tries.left++;
          continue;
        }
        const next = nextStep({
          error: failure,
          attemptsLeft: tries.left,
          otherBackend: "member" in pick(run, pool),
          otherPool,
          fallbackOn: fallbackOn(run),
          resuming,
          random: random(),
        });
        if (next.kind === "give-up") throw failure;
        if (next.kind === "next-pool" || !pool.budget.retry(clock.now())) return failure;
        if (next.kind === "again") {
          await clock.sleep(next.waitMs, run.signal).catch((reason: unknown) => Promise.reject(cancelled(reason)));
          for (const { backend } of pool.members) run.failed.delete(backend.id);
        }
      }
    }
  }

  /** One attempt, and one of those that are left beside it where the pool hedges and the first token is late. */
  function attemptOrTwo(
    run: Run,
    pool: Pool,
    selection: Picked,
    tries: { left: number },
  ): AsyncGenerator<DispatchEvent> {
    const first = begin(run, pool, selection, hooks);
    const hedging = hedgingOf(pool);
    if (hedging === undefined || run.broke !== undefined) return first();
    const second = () => {
      const other = tries.left > 0 ? pick(run, pool, selection.member) : undefined;
      if (other === undefined || !("member" in other)) return undefined;
      if (!hedging.take() || !pool.budget.retry(clock.now())) return undefined;
      tries.left--;
      return begin(run, pool, other, hooks);
    };
    const ended = (outcome: HedgeOutcome) => hooks.onHedge?.({ pool: pool.name, outcome });
    return hedged({ first, second, hedging, clock, signal: run.signal, ended });
  }

  /** `busy` answers the request already. */
  function pick(run: Run, pool: Pool, busy?: Member): Picked | Nobody {
    const { request } = run;
    const now = clock.now();
    const selection = select({
      pools,
      pool,
      request,
      now,
      contextTokens: request.promptIds.length + run.sent.ids.length,
      against(member) {
        if (member === busy) return "answers this request already";
        return hasFailed(run, member) ? "failed this request" : undefined;
      },
      wayOn: (backend) => wayOn(backend, run),
      limitIn: (way, room) => limitIn(run, way, room),
      vocabularyHash: vocabularyHash(request.model),
    });
    return "member" in selection ? { ...selection, routeMs: clock.now() - now } : selection;
  }

  function fallbackOn(run: Run): FallbackOn {
    return settings(run.request.model)?.fallback.on ?? [];
  }

  /** Undefined = it does not hedge. */
  function hedgingOf({ name, config }: Pool): Hedging | undefined {
    if (config.hedge === undefined) return undefined;
    const hedging = hedgings.get(name) ?? new Hedging(config.hedge);
    hedgings.set(name, hedging);
    hedging.settings = config.hedge;
    return hedging;
  }

  /**
   * A daemon died with a request that it had taken on. Nothing was wrong with the request, and it may have waited there for
   * long, so it is carried on like one whose answer had begun, instead of being counted as a failed attempt.
   */
  function isLost(run: Run, { backend }: Member, error: SluiceError): boolean {
    const { breaks: allowed = 0 } = settings(run.request.model)?.resume ?? {};
    return backend.capabilities.tokenIds && error.code === "backend_stream_broken" && run.breaks < allowed;
  }

  /** Throws when this break is the answer's end: the failure is final, or too many have come before it. */
  function breakOff(run: Run, pool: Pool, error: SluiceError): void {
    const { wait = 0, breaks: allowed = 0 } = settings(run.request.model)?.resume ?? {};
    if (!error.retryable || ++run.breaks > allowed) throw error;
    run.futile = 0;
    const at = clock.now();
    run.broke = { error, at, until: Math.min(at + wait, run.startedAt + pool.config.deadlines.total) };
  }

  /** Resolves when some backend could take a broken answer on; throws what broke it when the wait is over. */
  async function untilSomebody(run: Run): Promise<void> {
    const { broke } = run;
    if (broke === undefined) return;
    const somebody = () => poolsFor(run).some((pool) => "member" in pick(run, pool));
    try {
      await within(clock, Math.max(0, broke.until - clock.now()), run.signal, (limit) => pools.until(somebody, limit));
    } catch (error) {
      throw run.signal.aborted ? cancelled(error) : broke.error;
    }
  }

  return {
    dispatch,
    poolsOf: (model) => pools.of(model).map((pool) => pool.name),
    info(model) {
      const order = pools.of(model);
      const first = order.flatMap((pool) => usable(model, pool))[0]?.info;
      if (first === undefined) return undefined;
      // Also of those that are away for a moment: their callers are told to come back, not that the prompt is too long.
      const known = order.flatMap((pool) => matching(model, pool)).flatMap(({ info }) => info ?? []);
      const longest = Math.max(...known.map(tokensFor));
      return { ...first, contextLength: longest, kvTokens: longest };
    },
    ready,
    untilReady: (signal) => pools.until(ready, signal),
    until: (condition, signal) => pools.until(() => condition(snapshotOf(pools, clock.now())), signal),
    snapshot: () => snapshotOf(pools, clock.now()),
    reconfigure(config) {
      pools.reconfigure(config);
      models = config.models;
      for (const name of hedgings.keys()) if (!Object.hasOwn(config.pools, name)) hedgings.delete(name);
    },
    async close() {
      shadows.close();
      await pools.close();
    },
  };
}

/** Of what two pools said, the word that says most about what the caller can do. */
function weightier(first: SluiceError, second: SluiceError): SluiceError {
  // A pool that can never serve the request says nothing about the others.
  if (isUnfit(first)) return second;
  if (isUnfit(second) || second.code === "no_backend") return first;
  return second;
}

const isUnfit = ({ code }: SluiceError): boolean => code === "capability_missing" || code === "context_length_exceeded";
