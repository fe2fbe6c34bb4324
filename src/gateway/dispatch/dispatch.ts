import type { BackendInfo, StepTimings, Usage } from "../../backends/backend.ts";
import type { OpenBackend } from "../../backends/open.ts";
import type { Clock } from "../../clock.ts";
import type { Config } from "../../config/schema.ts";
import { asSluiceError, type SluiceError, unavailable } from "../../errors.ts";
import type { DispatchEvent, PreparedRequest, RouteDecision } from "../request.ts";
import { within } from "../routing/health.ts";
import { type Member, type Pool, Pools } from "../routing/pools.ts";
import { attempt, cutShort } from "./attempt.ts";
import { wayOn } from "./resume.ts";
import { isBackendFault, nextStep } from "./retry.ts";
import { beginRun, hasFailed, isComplete, type Run } from "./run.ts";
import { nobody, select, tokensFor, vocabularyMismatch } from "./select.ts";
import type { TextCodec } from "./sent.ts";
import { type DispatcherSnapshot, snapshotOf } from "./snapshot.ts";
import { cancelled } from "./timed.ts";

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
  /** The gateway's tokenizer for a model: an answer can then go on between backends of tokens and of text. */
  readonly codec?: (model: string) => TextCodec | undefined;
  readonly hooks?: DispatchHooks;
  /** 0 <= random < 1; for jitter only. */
  readonly random?: () => number;
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

/** Attempts in a row that bring an answer no further, over all pools and rounds: a last bound on what one request may cost. */
const maxFutileAttempts = 16;

export function createDispatcher(options: DispatcherOptions): Dispatcher {
  const { clock, vocabularyHash, codec, hooks = {}, random = Math.random } = options;
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
    const run = beginRun({ request, choice, signal, startedAt: clock.now(), codec: codec?.(request.model) });
    let failure: SluiceError | undefined;
    try {
      yield* answer(run);
    } catch (error) {
      failure = asSluiceError(error);
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

  /** The model's pools in order. The error is for a caller who has nothing yet, when nobody could answer. */
  async function* round(run: Run): AsyncGenerator<DispatchEvent, "finished" | "broke" | SluiceError> {
    const order = pools.of(run.request.model);
    let last: SluiceError | undefined;
    for (const [position, pool] of order.entries()) {
      const outcome = yield* inPool(run, pool, position + 1 < order.length);
      if (outcome === "finished" || outcome === "broke") return outcome;
      last = weightier(last, outcome);
    }
    return last ?? unavailable("no_backend", "No backend serves this model.", { retryAfterMs: 1_000 });
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
    if (run.broke === undefined) pool.budget.request(clock.now());
    let last: SluiceError | undefined;
    for (let left = pool.config.retry.attempts - 1; ; left--) {
      const selection = pick(run, pool);
      if (!("member" in selection)) return last ?? nobody(selection);
      const { member, way } = selection;
      const { progress } = run.sent;
      try {
        // Runs up to the ledger's count without a wait, so no other request is routed by the state before it.
        yield* attempt({ run, pool, selection, routeMs: selection.routeMs, pools, clock, hooks });
        return "finished";
      } catch (error) {
        const failure = asSluiceError(error);
        if (run.signal.aborted) throw failure;
        if (isBackendFault(failure)) pools.suspect(member);
        if (run.sent.progress > progress || isLost(run, member, failure)) {
          breakOff(run, pool, failure);
          run.failed.set(member.backend.id, clock.now());
          return "broke";
        }
        if (++run.futile > maxFutileAttempts) throw failure;
        last = failure;
        if (way === "prefill" && failure.code === "continuation_refused") {
          // It may still tell its answer anew, and that is no second try of the same thing.
          run.refusedPrefill.add(member.backend.id);
          left++;
          continue;
        }
        run.failed.set(member.backend.id, clock.now());
        const resuming = run.broke !== undefined;
        const otherBackend = "member" in pick(run, pool);
        const next = nextStep({
          error: failure,
          attemptsLeft: left,
          otherBackend,
          otherPool,
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

  function pick(run: Run, pool: Pool) {
    const { request } = run;
    const now = clock.now();
    const selection = select({
      pools,
      pool,
      request,
      now,
      contextTokens: request.promptIds.length + run.sent.ids.length,
      hasFailed: (member) => hasFailed(run, member),
      wayOn: (backend) => wayOn(backend, run),
      vocabularyHash: vocabularyHash(request.model),
    });
    return { ...selection, routeMs: clock.now() - now };
  }

  /**
   * A daemon died with a request that it had taken on. Nothing was wrong with the request, and it may have waited there for
   * long, so it is carried on like one whose answer had begun, instead of being counted as a failed attempt.
   */
  function isLost(run: Run, { backend }: Member, error: SluiceError): boolean {
    const { breaks } = pools.resumeOf(run.request.model);
    return backend.capabilities.tokenIds && error.code === "backend_stream_broken" && run.breaks < breaks;
  }

  /** Throws when this break is the answer's end: the failure is final, or too many have come before it. */
  function breakOff(run: Run, pool: Pool, error: SluiceError): void {
    const { wait, breaks } = pools.resumeOf(run.request.model);
    if (!error.retryable || ++run.breaks > breaks) throw error;
    run.futile = 0;
    const at = clock.now();
    run.broke = { error, at, until: Math.min(at + wait, run.startedAt + pool.config.deadlines.total) };
  }

  /** Resolves when some backend could take a broken answer on; throws what broke it when the wait is over. */
  async function untilSomebody(run: Run): Promise<void> {
    const { broke } = run;
    if (broke === undefined) return;
    const somebody = () => pools.of(run.request.model).some((pool) => "member" in pick(run, pool));
    try {
      await within(clock, broke.until - clock.now(), run.signal, (limit) => pools.until(somebody, limit));
    } catch (error) {
      throw run.signal.aborted ? cancelled(error) : broke.error;
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

/** Of what two pools said, the word that says most about what the caller can do. */
function weightier(first: SluiceError | undefined, second: SluiceError): SluiceError {
  if (first === undefined) return second;
  // A pool that can never serve the request says nothing about the others.
  if (first.code === "capability_missing") return second;
  if (second.code === "capability_missing" || second.code === "no_backend") return first;
  return second;
}
