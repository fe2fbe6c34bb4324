import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { GenerationEvent } from "../../src/backends/backend.ts";
import { createDaemonBackend, type DaemonBackend } from "../../src/backends/daemon/client.ts";
import { type Daemon, serveDaemon } from "../../src/backends/daemon/server.ts";
import { openVocabulary } from "../../src/backends/daemon/start.ts";
import { openUndiciOrigin } from "../../src/backends/undici.ts";
import { createEngine } from "../../src/engine/create.ts";
import { generationRequest } from "../support/requests.ts";
import { smollm2 } from "../support/smollm2.ts";

const turns = 20;

describe("a caller that leaves the real engine", () => {
  let daemon: Daemon;
  let backend: DaemonBackend;
  /** When the engine was told to cancel, and how many steps it had finished by then. */
  const cancels: Array<{ readonly at: number; readonly steps: number }> = [];
  let wake = () => {};

  beforeAll(async () => {
    daemon = await serveDaemon(
      { model: await smollm2(), port: 0, precision: "fast", threads: 1, kvTokens: 4096, maxRows: 4 },
      {
        openVocabulary,
        async createEngine(options, callbacks) {
          const engine = await createEngine(options, callbacks);
          return {
            ...engine,
            cancel(id) {
              engine.cancel(id);
              cancels.push({ at: performance.now(), steps: engine.stats().steps });
              wake();
            },
          };
        },
      },
    );
    backend = createDaemonBackend({
      id: "native",
      http: openUndiciOrigin(daemon.url, { connectTimeoutMs: 1000, connections: 8 }),
    });
  });
  afterAll(async () => {
    await backend.close();
    await daemon.close();
  });

  /** From leaving an answer, where `leaveAt` says: milliseconds to the engine's cancel, then steps to the end of its row. */
  async function leave(leaveAt: GenerationEvent["type"] | "headers") {
    const seen: Array<{ cancelMs: number; steps: number }> = [];
    for (let turn = 0; turn < turns; turn++) {
      const control = new AbortController();
      // Long where the answer is left in prefill, short where it is left later.
      const length = leaveAt === "tokens" ? 20 : 300;
      const promptIds = Uint32Array.from({ length }, (_, index) => 500 + turn * length + index);
      const submitted = daemon.engine.stats().runningRows + daemon.engine.stats().queuedRows;
      const told = new Promise<void>((resolve) => {
        wake = resolve;
      });
      const events = backend.generate(generationRequest({ promptIds, maxNewTokens: 500 }), control.signal);
      const reading = (async () => {
        for await (const event of events) if (event.type === leaveAt) control.abort();
      })();
      const ended = expect(reading).rejects.toMatchObject({ code: "cancelled" });
      if (leaveAt === "headers") {
        await until(() => daemon.engine.stats().runningRows + daemon.engine.stats().queuedRows > submitted);
        control.abort();
      }
      const at = await aborted(control.signal);
      await told;
      const cancel = cancels.at(-1);
      await until(() => daemon.engine.stats().runningRows + daemon.engine.stats().queuedRows === 0);
      if (cancel === undefined) throw new Error("nothing was cancelled");
      seen.push({ cancelMs: cancel.at - at, steps: daemon.engine.stats().steps - cancel.steps });
      await ended;
    }
    expect(cancels.length % turns).toBe(0);
    return seen;
  }

  it.each(["headers", "progress", "tokens"] as const)(
    "cancels within 100 ms and frees its row with the running step: window %s",
    async (window) => {
      const seen = await leave(window);
      expect(median(seen.map(({ cancelMs }) => cancelMs))).toBeLessThan(100);
      // The step that ran when the cancel came; nothing else runs here that could add one.
      expect(Math.max(...seen.map(({ steps }) => steps))).toBeLessThanOrEqual(1);
      const { blocks } = daemon.engine.stats();
      expect(blocks.leased).toBe(0);
      expect(blocks.free + blocks.cached).toBe(blocks.total);
      expect(daemon.engine.integrity()).toMatchObject({ ok: true });
    },
  );
});

const median = (values: readonly number[]) => values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;

function aborted(signal: AbortSignal): Promise<number> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve(performance.now());
    signal.addEventListener("abort", () => resolve(performance.now()), { once: true });
  });
}

/** The engine has its own thread: its state is looked at each turn of the event loop. */
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}
