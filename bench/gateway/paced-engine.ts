import { setImmediate, setTimeout as sleep } from "node:timers/promises";
import type { CreateEngine, Engine, EngineEvent, EngineInfo } from "../../src/engine/engine.ts";
import { stepMs, tokensInAnswer } from "./workload.ts";

interface Row {
  readonly id: number;
  readonly promptTokens: number;
  readonly tokens: number;
  readonly queuedAt: number;
  produced: number;
}

/**
 * An engine that gives the benchmark's answer and computes nothing: one token a row and step, all rows in one callback, a
 * step each `stepMs`; or, unpaced, a whole answer of one-token events in one callback. What stands around it (HTTP, wire
 * format, batching of a step) is the real daemon.
 */
export function pacedEngine(answer: readonly number[], pace: { paced: boolean }): CreateEngine {
  return async (options, callbacks): Promise<Engine> => {
    const info: EngineInfo = {
      model: options.model,
      architecture: "bench",
      vocabularySize: options.vocabulary.tokens.length,
      contextLength: 8192,
      blockSize: 16,
      kvTokens: options.kvTokens,
      maxRows: options.maxRows,
      parameters: 0,
      weightBytes: 0,
    };
    const rows = new Map<number, Row>();
    let nextId = 1;
    let steps = 0;
    let generated = 0;
    let stepping = false;

    function advance(row: Row, tokens: number, events: EngineEvent[]): void {
      const { id } = row;
      if (row.produced === 0) events.push({ type: "accepted", id, cachedTokens: 0 });
      for (let left = Math.min(tokens, row.tokens - row.produced); left > 0; left--) {
        events.push({ type: "tokens", id, ids: [answer[row.produced++] ?? 0], logprobs: undefined });
        generated++;
      }
      if (row.produced < row.tokens) return;
      rows.delete(id);
      const usage = { promptTokens: row.promptTokens, cachedTokens: 0, completionTokens: row.tokens };
      const decodeMs = performance.now() - row.queuedAt;
      const timings = { queuedMs: 0, prefillMs: 1, decodeMs, steps: row.tokens, maskMs: 0 };
      events.push({ type: "finish", id, reason: "stop", usage, timings });
    }

    /** Steps while anything runs, on a grid: a late step is not made up for by a later one. */
    async function run(): Promise<void> {
      stepping = true;
      let at = performance.now();
      while (rows.size > 0) {
        if (pace.paced) {
          at = Math.max(at + stepMs, performance.now());
          await sleep(at - performance.now());
        } else await setImmediate();
        const events: EngineEvent[] = [];
        for (const row of rows.values()) advance(row, pace.paced ? 1 : row.tokens, events);
        steps++;
        callbacks.onEvents(events);
      }
      stepping = false;
    }

    return {
      info,
      submit(request) {
        const id = nextId++;
        rows.set(id, {
          id,
          promptTokens: request.promptIds.length,
          tokens: Math.min(tokensInAnswer, request.maxNewTokens),
          queuedAt: performance.now(),
          produced: 0,
        });
        if (!stepping) void run();
        return { id };
      },
      cancel: (id) => void rows.delete(id),
      hasGrammar: () => false,
      loadGrammar: () => Promise.reject(new Error("the benchmark's engine has no grammars")),
      kvEvents: () => [],
      kvSnapshot: () => ({ seq: 0, stored: [], removed: [] }),
      stats: () => ({
        runningRows: rows.size,
        queuedRows: 0,
        pendingPrefillTokens: 0,
        blocks: { total: options.kvTokens / 16, free: options.kvTokens / 16, cached: 0, leased: 0 },
        steps,
        generatedTokens: generated,
        prefilledTokens: 0,
        stepMsTotal: steps * stepMs,
        stepMsMax: stepMs,
        masks: { count: 0, totalMs: 0, maxMs: 0 },
        stalledMs: 0,
        healthy: true,
      }),
      integrity: () => ({ ok: true, detail: "" }),
      drain: async () => rows.clear(),
      close: async () => rows.clear(),
    };
  };
}
