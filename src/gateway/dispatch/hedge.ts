import type { Clock } from "../../clock.ts";
import type { PoolConfig } from "../../config/schema.ts";
import { asSluiceError, SluiceError } from "../../errors.ts";
import type { DispatchEvent } from "../request.ts";

const maxSamples = 128;
/** With fewer there is no telling the 95th percentile from the slowest. */
const enoughSamples = 20;
/** Hedges that requests may have saved up. */
const maxCredit = 10;

type Settings = NonNullable<PoolConfig["hedge"]>;

/** What one pool's hedging goes by: its times to the first token, and how many hedges its requests have paid for. */
export class Hedging {
  /** Those of the running configuration. */
  settings: Settings;
  readonly #times: number[] = [];
  #next = 0;
  #p95: number | undefined;
  #credit = 0;

  constructor(settings: Settings) {
    this.settings = settings;
  }

  /** One request more; each pays its share of a hedge. */
  request(): void {
    this.#credit = Math.min(maxCredit, this.#credit + this.settings.max);
  }

  /** True, and paid for, when one more hedge is within the share. */
  take(): boolean {
    // A share such as 0.05 is not exact: twenty of them must do.
    if (this.#credit < 1 - 1e-9) return false;
    this.#credit -= 1;
    return true;
  }

  /** Milliseconds from an attempt's start to its first token; of one that was outrun, to its end: it would have taken longer. */
  observe(ms: number): void {
    this.#times[this.#next] = ms;
    this.#next = (this.#next + 1) % maxSamples;
    this.#p95 = undefined;
  }

  /** Milliseconds after which a first token is late; undefined = not known well enough to hedge. */
  delay(): number | undefined {
    const { after } = this.settings;
    if (after !== "p95") return after;
    if (this.#times.length < enoughSamples) return undefined;
    this.#p95 ??= this.#times.toSorted((a, b) => a - b)[Math.ceil(this.#times.length * 0.95) - 1];
    return this.#p95;
  }
}

/** Why an attempt was cancelled when nothing is wrong with it. */
export const outrun = new SluiceError({
  status: 499,
  type: "invalid_request_error",
  code: "outrun",
  message: "Another attempt was faster.",
});

/** One attempt's part in a race. */
export interface Lane {
  /** Aborts, with `outrun`, when the other attempt won, and with the caller's signal. */
  readonly signal: AbortSignal;
  /** To be called at the first output, before anything is kept of it: false = the other one was faster, stop here. */
  readonly claim: () => boolean;
}

export type Start = (lane: Lane) => AsyncGenerator<DispatchEvent>;

/** Of a second attempt: its answer was taken, or the first one's was, or there was none. */
export type HedgeOutcome = "won" | "lost" | "failed";

export interface HedgedOptions {
  readonly first: Start;
  /** Asked once, when the first token is late; undefined = nobody else, or no more hedges now. */
  readonly second: () => Start | undefined;
  readonly hedging: Hedging;
  readonly clock: Clock;
  readonly signal: AbortSignal;
  /** Told once for each second attempt that was made. */
  readonly ended: (outcome: HedgeOutcome) => void;
}

interface Runner {
  readonly events: AsyncGenerator<DispatchEvent>;
  readonly control: AbortController;
  readonly startedAt: number;
  /** What it said while the other one spoke. */
  readonly held: DispatchEvent[];
  next: Promise<Step>;
}

type Step =
  | { readonly runner: Runner; readonly result: IteratorResult<DispatchEvent> }
  | { readonly runner: Runner; readonly error: SluiceError };

/**
 * One attempt, and a second one beside it when the first token is late. The first token decides: within the same turn the
 * other attempt is cancelled. Until then the one that began first is heard; when it fails the other goes on alone. Throws
 * what the last of them failed with, or at once what no other backend can mend.
 */
export async function* hedged(options: HedgedOptions): AsyncGenerator<DispatchEvent> {
  const { hedging, clock, signal, ended } = options;
  const running = new Set<Runner>();
  const decided = new AbortController();
  let winner: Runner | undefined;
  let second: Runner | undefined;

  const enter = (start: Start): Runner => {
    const control = new AbortController();
    const claim = (): boolean => {
      if (winner !== undefined) return winner === runner;
      winner = runner;
      decided.abort();
      hedging.observe(clock.now() - runner.startedAt);
      for (const other of [...running]) {
        if (other === runner) continue;
        hedging.observe(clock.now() - other.startedAt);
        drop(other);
      }
      return true;
    };
    const events = start({ signal: AbortSignal.any([signal, control.signal]), claim });
    const runner: Runner = { events, control, startedAt: clock.now(), held: [], next: Promise.race([]) };
    running.add(runner);
    advance(runner);
    return runner;
  };
  const advance = (runner: Runner): void => {
    runner.next = runner.events.next().then(
      (result) => ({ runner, result }),
      (error: unknown) => ({ runner, error: asSluiceError(error) }),
    );
  };
  const drop = (runner: Runner): void => {
    running.delete(runner);
    runner.control.abort(outrun);
    // One that waits ends by the signal, one whose last event nobody took by this.
    void runner.events.return(undefined).catch(() => {});
  };

  let lead = enter(options.first);
  let late: Promise<"late"> | undefined = lateness(options, decided.signal);
  try {
    for (;;) {
      const step = await Promise.race([...[...running].map(({ next }) => next), ...(late === undefined ? [] : [late])]);
      if (step === "late") {
        late = undefined;
        // The first token may have come in the very same turn.
        const start = winner === undefined ? options.second() : undefined;
        if (start !== undefined) second = enter(start);
        continue;
      }
      const { runner } = step;
      if (!running.has(runner)) continue;
      if ("error" in step) {
        running.delete(runner);
        const [other] = running;
        if (other === undefined || !step.error.retryable) throw step.error;
        lead = other;
        yield* other.held.splice(0);
        continue;
      }
      if (step.result.done === true) return;
      const event = step.result.value;
      if (runner === winner) {
        yield* runner.held.splice(0);
        yield event;
        yield* runner.events;
        return;
      }
      if (runner === lead) yield event;
      else if (event.type !== "progress") runner.held.push(event);
      // While the event was taken the other one may have won.
      if (running.has(runner)) advance(runner);
    }
  } finally {
    decided.abort();
    for (const runner of [...running]) drop(runner);
    if (second !== undefined && (winner !== undefined || !signal.aborted))
      ended(winner === second ? "won" : winner === undefined ? "failed" : "lost");
  }
}

function lateness({ hedging, clock }: HedgedOptions, decided: AbortSignal): Promise<"late"> | undefined {
  const ms = hedging.delay();
  if (ms === undefined) return undefined;
  return clock.sleep(ms, decided).then(
    () => "late" as const,
    // Decided before: nobody waits for this any more.
    () => Promise.race<"late">([]),
  );
}
