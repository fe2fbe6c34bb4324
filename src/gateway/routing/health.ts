import type { Backend, BackendHealth, BackendInfo, BackendLoad } from "../../backends/backend.ts";
import type { Clock } from "../../clock.ts";
import { SluiceError } from "../../errors.ts";

export interface Observation {
  readonly health: BackendHealth;
  readonly info: BackendInfo | undefined;
  readonly load: BackendLoad | undefined;
}

export interface WatchOptions {
  readonly backend: Backend;
  readonly clock: Clock;
  /** 0 <= random < 1. */
  readonly random: () => number;
  readonly report: (observation: Observation) => void;
  readonly signal: AbortSignal;
  /** A signal that aborts when another probe should come at once; asked for before each probe. */
  readonly nudged?: () => AbortSignal;
}

const readyEveryMs = 2_000;
const firstRetryMs = 100;
const probeTimeoutMs = 2_000;
/** Probes in a row without an answer that make a backend late, and gone. */
const lateAfter = 2;
const goneAfter = 5;

/**
 * Probes one backend until `signal` aborts. What it is (`info`) is asked again whenever it comes back: another model or
 * vocabulary may stand behind the address. A backend that is not ready is asked sooner at first, then at the usual pace.
 */
export async function watchHealth(options: WatchOptions): Promise<void> {
  const { backend, clock, random, report, signal, nudged } = options;
  let info: BackendInfo | undefined;
  let failures = 0;
  while (!signal.aborted) {
    const nudge = nudged?.();
    try {
      const known = info;
      const observation = await within(clock, probeTimeoutMs, signal, (limit) => observe(backend, known, limit));
      if (signal.aborted) return;
      info = observation.info;
      failures = observation.health.ready ? 0 : failures + 1;
      report(observation);
    } catch (error) {
      if (signal.aborted) return;
      failures++;
      const reason = error instanceof SluiceError ? error.code : "probe_failed";
      // Silence is a busy machine first: on one that is too busy for all of them, every backend would be taken out at once.
      if (reason !== "probe_timeout" || failures >= (info === undefined ? lateAfter : goneAfter)) {
        info = undefined;
        report({ health: { ready: false, reason }, info, load: undefined });
      } else if (failures >= lateAfter) {
        report({ health: { ready: true, late: true }, info, load: undefined });
      }
    }
    const pace = failures === 0 ? readyEveryMs : Math.min(readyEveryMs, firstRetryMs * 2 ** (failures - 1));
    // Jitter of a fifth either way, so that many gateways do not probe in step.
    const pause = pace * (0.8 + 0.4 * random());
    if (nudge === undefined) {
      await clock.sleep(pause, signal).catch(() => {});
      continue;
    }
    // However often something fails there, a struggling backend is not probed more often than this.
    const least = Math.min(firstRetryMs, pause);
    await clock.sleep(least, signal).catch(() => {});
    await clock.sleep(pause - least, AbortSignal.any([signal, nudge])).catch(() => {});
  }
}

async function observe(backend: Backend, known: BackendInfo | undefined, signal: AbortSignal): Promise<Observation> {
  const health = await backend.health(signal);
  if (!health.ready) return { health, info: undefined, load: undefined };
  return { health, info: known ?? (await backend.info(signal)), load: await backend.load(signal) };
}

/** Runs `work` with a signal that aborts after `ms` or with `parent`. */
export async function within<T>(
  clock: Clock,
  ms: number,
  parent: AbortSignal,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const done = new AbortController();
  const limit = new AbortController();
  const signal = AbortSignal.any([parent, limit.signal]);
  clock.sleep(ms, done.signal).then(
    () =>
      limit.abort(
        new SluiceError({
          status: 504,
          type: "server_error",
          code: "probe_timeout",
          message: "A probe took too long.",
        }),
      ),
    () => {},
  );
  try {
    return await work(signal);
  } finally {
    done.abort();
  }
}
