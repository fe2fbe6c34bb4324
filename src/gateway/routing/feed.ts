import type { Backend, KvFeedPosition } from "../../backends/backend.ts";
import type { Clock } from "../../clock.ts";
import type { KvIndex } from "./kv-index.ts";

export interface FeedOptions {
  readonly backend: Backend;
  readonly index: KvIndex;
  readonly clock: Clock;
  /** 0 <= random < 1. */
  readonly random: () => number;
  readonly signal: AbortSignal;
  /** The feed came alive or broke. */
  readonly changed: () => void;
}

/** Three heartbeats missed. */
const silenceMs = 7_000;
const firstRetryMs = 200;
const slowestRetryMs = 5_000;

/**
 * Keeps `index` fed with one backend's KV events until `signal` aborts: resumes where a connection broke off, and takes a
 * silent connection for a dead one.
 */
export async function followKvEvents({ backend, index, clock, random, signal, changed }: FeedOptions): Promise<void> {
  const subscribe = backend.kvEvents;
  if (subscribe === undefined) return;
  let position: KvFeedPosition | undefined;
  let failures = 0;
  while (!signal.aborted) {
    const connection = new AbortController();
    const silence = watchSilence(clock, () => connection.abort());
    const both = AbortSignal.any([signal, connection.signal]);
    try {
      let instance = position?.instance;
      for await (const event of subscribe.call(backend, position, both)) {
        silence.heard();
        failures = 0;
        const was = index.feedState(backend.id).alive;
        index.apply(backend.id, event);
        if (!was) changed();
        if (event.type === "snapshot") instance = event.instance;
        // Between the parts of a snapshot there is no place to resume from; between those of a delta it is the one before.
        if (event.type === "heartbeat" || instance === undefined) continue;
        if (!event.more) position = { seq: event.seq, instance };
        else if (event.type === "snapshot") position = undefined;
      }
    } catch {
      // Whatever broke it, the next connection starts from `position`; the feed's state tells operators.
    } finally {
      silence.stop();
      connection.abort();
      index.feedDown(backend.id);
      changed();
    }
    const pace = Math.min(slowestRetryMs, firstRetryMs * 2 ** failures);
    failures++;
    await clock.sleep(pace * (0.8 + 0.4 * random()), signal).catch(() => {});
  }
}

function watchSilence(clock: Clock, onSilence: () => void) {
  const stopped = new AbortController();
  let heardAt = clock.now();
  void (async () => {
    for (let wait = silenceMs; wait > 0; wait = heardAt + silenceMs - clock.now()) {
      await clock.sleep(wait, stopped.signal);
    }
    onSilence();
  })().catch(() => {});
  return {
    heard() {
      heardAt = clock.now();
    },
    stop: () => stopped.abort(),
  };
}
