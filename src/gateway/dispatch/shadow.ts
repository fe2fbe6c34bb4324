import type { Clock } from "../../clock.ts";
import type { ModelConfig } from "../../config/schema.ts";
import { asSluiceError } from "../../errors.ts";
import type { DispatchEvent, PreparedRequest } from "../request.ts";
import type { Pool } from "../routing/pools.ts";
import type { Lane } from "./hedge.ts";
import { beginRun, type Run } from "./run.ts";
import type { Nobody, Picked } from "./select.ts";
import { unitHash } from "./split.ts";

export type ShadowOutcome =
  | "ok"
  /** The backend failed it. */
  | "error"
  /** It ran into its bound. */
  | "timeout"
  /** The copied request was given up by its caller. */
  | "cancelled"
  /** No backend of the pool could take it. */
  | "unavailable"
  /** As many copies as may run at once were running. */
  | "busy";

export interface ShadowReport {
  readonly model: string;
  readonly pool: string;
  readonly outcome: ShadowOutcome;
  /** `metricLabel` of the failure where the outcome is `error`. */
  readonly error: string | undefined;
  /** Milliseconds; 0 where nobody was asked. */
  readonly ms: number;
  readonly firstTokenMs: number | undefined;
}

export interface ShadowsOptions {
  readonly clock: Clock;
  readonly poolNamed: (name: string) => Pool | undefined;
  readonly pick: (run: Run, pool: Pool) => Picked | Nobody;
  readonly attempt: (run: Run, pool: Pool, selection: Picked, lane: Lane) => AsyncIterable<DispatchEvent>;
  readonly ended: (report: ShadowReport) => void;
}

type Settings = NonNullable<ModelConfig["shadow"]>;

/** Below every tenant's. */
const lowestPriority = -101;

/** Whether this request is one of the fraction: by its id, so that it is the same wherever it is looked at. */
export function isShadowed({ id }: PreparedRequest, fraction: number): boolean {
  return unitHash(id, 0) < fraction;
}

/**
 * Copies of requests, sent to a pool that is to be tried. One attempt each, at the lowest priority, whose answer nobody
 * sees: it is counted in the load of the backends that it runs on, and in nothing that is the caller's.
 */
export class Shadows {
  readonly #options: ShadowsOptions;
  readonly #running = new Map<string, number>();
  readonly #closing = new AbortController();

  constructor(options: ShadowsOptions) {
    this.#options = options;
  }

  /** Copies the request if it is to be copied; never throws and never keeps the caller waiting. */
  offer(request: PreparedRequest, settings: Settings, caller: AbortSignal): void {
    const pool = this.#options.poolNamed(settings.pool);
    if (pool === undefined || !isShadowed(request, settings.fraction)) return;
    const { model } = request;
    const running = this.#running.get(model) ?? 0;
    const idle = { model, pool: pool.name, error: undefined, ms: 0, firstTokenMs: undefined };
    if (running >= settings.concurrency) {
      this.#options.ended({ ...idle, outcome: "busy" });
      return;
    }
    this.#running.set(model, running + 1);
    void this.#copy(request, pool, settings, caller)
      .catch((): ShadowReport => ({ ...idle, outcome: "cancelled" }))
      .then((report) => {
        this.#running.set(model, (this.#running.get(model) ?? 1) - 1);
        this.#options.ended(report);
      });
  }

  close(): void {
    this.#closing.abort();
  }

  async #copy(request: PreparedRequest, pool: Pool, settings: Settings, caller: AbortSignal): Promise<ShadowReport> {
    const { clock, pick, attempt } = this.#options;
    const limit = new AbortController();
    const done = new AbortController();
    const left = AbortSignal.any([caller, this.#closing.signal]);
    // The caller's own attempt goes out first.
    await clock.sleep(0, left);
    const startedAt = clock.now();
    clock.sleep(settings.total, done.signal).then(
      () => limit.abort(),
      () => {},
    );
    let firstTokenMs: number | undefined;
    const report = (outcome: ShadowOutcome, error?: string): ShadowReport => {
      return { model: request.model, pool: pool.name, outcome, error, ms: clock.now() - startedAt, firstTokenMs };
    };
    const claim = () => {
      firstTokenMs ??= clock.now() - startedAt;
      return true;
    };
    try {
      const signal = AbortSignal.any([left, limit.signal]);
      const copy = copyOf(request);
      const run = beginRun({ request: copy, choice: 0, signal, session: 0, startedAt, codec: undefined });
      const selection = pick(run, pool);
      if (!("member" in selection)) return report("unavailable");
      for await (const _ of attempt(run, pool, selection, { signal, claim }));
      return report("ok");
    } catch (error) {
      if (limit.signal.aborted) return report("timeout");
      return left.aborted ? report("cancelled") : report("error", asSluiceError(error).metricLabel);
    } finally {
      done.abort();
    }
  }
}

/** Its spans are not the caller's, and no two attempts have one id. */
function copyOf(request: PreparedRequest): PreparedRequest {
  const { id, tenant } = request;
  return {
    ...request,
    id: `${id}-shadow`,
    n: 1,
    tenant: { ...tenant, priority: lowestPriority },
    traceparent: undefined,
  };
}
