import { setTimeout as sleep } from "node:timers/promises";
import { Pool } from "undici";

/** Where a caller leaves: as soon as its request is written; at a random moment before the first byte; behind a random event. */
export type Window = "at-once" | "before-first-byte" | "mid-stream";

export interface Tally {
  /** Came to its end, as it should. */
  whole: number;
  /** Left, by where. */
  readonly left: Record<Window, number>;
  /** Wanted to leave, and the answer was over first. */
  readonly overFirst: Record<Window, number>;
  /** Ended otherwise; the first few are kept. */
  failed: number;
  readonly failures: string[];
  events: number;
}

export interface CallersOptions {
  readonly url: string;
  readonly key: string;
  readonly model: string;
  readonly streams: number;
  readonly concurrency: number;
  readonly random: () => number;
  /** Called after every stream. */
  readonly onDone: (done: number) => void;
}

/** At most. */
export const answersPerStream = 4;

const schema = {
  type: "object",
  properties: { kind: { enum: ["old", "new", "borrowed"] }, count: { type: "integer", minimum: 0, maximum: 999 } },
  required: ["kind", "count"],
  additionalProperties: false,
};
const places = ["rivers", "clocks", "bread", "maps", "glass", "whales", "paper", "bridges"];

/** Runs all streams and resolves with what became of them; every connection is closed then. */
export async function runCallers(options: CallersOptions): Promise<Tally> {
  const pool = new Pool(options.url, { connections: options.concurrency, pipelining: 1, keepAliveTimeout: 60_000 });
  const tally: Tally = {
    whole: 0,
    left: { "at-once": 0, "before-first-byte": 0, "mid-stream": 0 },
    overFirst: { "at-once": 0, "before-first-byte": 0, "mid-stream": 0 },
    failed: 0,
    failures: [],
    events: 0,
  };
  const state = { next: 0, done: 0, firstByteMs: 20 };
  const caller = async () => {
    while (state.next < options.streams) {
      const index = state.next++;
      await stream(pool, options, index, tally, state).catch((error: unknown) => {
        tally.failed++;
        if (tally.failures.length < 10) tally.failures.push(`stream ${index}: ${String(error)}`);
      });
      options.onDone(++state.done);
    }
  };
  await Promise.all(Array.from({ length: options.concurrency }, caller));
  await pool.close();
  return tally;
}

function bodyOf({ model, random }: CallersOptions, index: number, long: boolean): string {
  const place = places[Math.floor(random() * places.length)] ?? "";
  const kind = random();
  return JSON.stringify({
    model,
    // Some prompts share a prefix of several blocks, each differs from all others behind it.
    messages: [{ role: "user", content: `Tell me all that you know about ${place}, then of number ${index}.` }],
    stream: true,
    // A tiny model has written a short answer before anybody could leave it.
    max_tokens: long ? 150 : kind < 0.2 ? 64 : 8 + Math.floor(random() * 25),
    temperature: 1,
    seed: index,
    ...(kind < 0.2 &&
      !long && {
        response_format: { type: "json_schema", json_schema: { name: "thing", strict: true, schema } },
      }),
    ...(long ? { n: answersPerStream } : kind > 0.9 && { n: 2 }),
  });
}

/**
 * Half of all streams are to be left, a third of them in each window. A caller that wanted to leave may find its answer
 * over; what was missed so far decides what the next one does.
 */
function windowOf({ whole, left }: Tally): Window | undefined {
  const windows = Object.entries(left) as Array<[Window, number]>;
  if (windows.reduce((sum, [, count]) => sum + count, 0) > whole) return undefined;
  return windows.toSorted(([, a], [, b]) => a - b)[0]?.[0];
}

async function stream(
  pool: Pool,
  options: CallersOptions,
  index: number,
  tally: Tally,
  state: { firstByteMs: number },
): Promise<void> {
  const { random, key } = options;
  const leaving = windowOf(tally);
  const leaveBehind = 1 + Math.floor(random() * 12);
  const control = new AbortController();
  const over = new AbortController();
  if (leaving === "at-once") setImmediate(() => control.abort());
  if (leaving === "before-first-byte") {
    void sleep(random() * state.firstByteMs, undefined, { signal: over.signal }).then(
      () => control.abort(),
      () => {},
    );
  }
  const began = performance.now();
  let events = 0;
  let tail = "";
  try {
    const { statusCode, body } = await pool.request({
      method: "POST",
      path: "/v1/chat/completions",
      headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
      body: bodyOf(options, index, leaving === "mid-stream"),
      signal: control.signal,
    });
    if (statusCode !== 200) throw new Error(`status ${statusCode}: ${(await body.text()).slice(0, 300)}`);
    for await (const bytes of body as AsyncIterable<Buffer>) {
      if (events === 0) {
        state.firstByteMs += (performance.now() - began - state.firstByteMs) / 64;
        // What was to come before the first byte did not come in time.
        over.abort();
      }
      const text = bytes.toString("latin1");
      events += text.split("data: ").length - 1;
      tail = (tail + text).slice(-64);
      if (leaving === "mid-stream" && events >= leaveBehind && !tail.includes("[DONE]")) control.abort();
    }
    if (!tail.endsWith("data: [DONE]\n\n"))
      throw new Error(`a clean end without [DONE] behind ${JSON.stringify(tail)}`);
    tally.whole++;
    if (leaving !== undefined) tally.overFirst[leaving]++;
  } catch (error) {
    if (!control.signal.aborted || leaving === undefined) throw error;
    tally.left[leaving]++;
  } finally {
    over.abort();
    tally.events += events;
  }
}
