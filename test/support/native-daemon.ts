import { setInterval } from "node:timers/promises";
import { parseArgs } from "node:util";
import { type DaemonParts, serveDaemon } from "../../src/backends/daemon/server.ts";
import { openVocabulary } from "../../src/backends/daemon/start.ts";
import { createEngine } from "../../src/engine/create.ts";
import type { EngineEvent } from "../../src/engine/engine.ts";

/** A daemon process around the native engine, for tests that kill one. Prints its URL as the only line of output. */
const { values } = parseArgs({
  options: {
    model: { type: "string", default: "" },
    port: { type: "string", default: "0" },
    // A tiny model answers within a few milliseconds; at one token each so many it can be met in the middle.
    "pace-ms": { type: "string", default: "0" },
    // Or it comes to a standstill: of each answer so many tokens are told, and nothing after them.
    "tokens-told": { type: "string", default: "Infinity" },
  },
});
const paceMs = Number(values["pace-ms"]);
const tokensTold = Number(values["tokens-told"]);

/** Hands on at most one token of each generation a tick, however many steps the engine has told of at once. */
const paced: DaemonParts["createEngine"] = (options, callbacks) => {
  const waiting = new Map<number, EngineEvent[]>();
  void (async () => {
    for await (const _ of setInterval(paceMs)) {
      const due: EngineEvent[] = [];
      for (const [id, events] of waiting) {
        const token = events.findIndex(({ type }) => type === "tokens");
        due.push(...events.splice(0, token < 0 ? events.length : token + 1));
        if (events.length === 0) waiting.delete(id);
      }
      if (due.length > 0) callbacks.onEvents(due);
    }
  })();
  return createEngine(options, {
    ...callbacks,
    onEvents(events) {
      for (const event of events) waiting.set(event.id, [...(waiting.get(event.id) ?? []), event]);
    },
  });
};

const standingStill: DaemonParts["createEngine"] = (options, callbacks) => {
  const told = new Map<number, number>();
  return createEngine(options, {
    ...callbacks,
    onEvents(events) {
      const before = events.filter(({ type, id }) => {
        const count = (told.get(id) ?? 0) + (type === "tokens" ? 1 : 0);
        told.set(id, count);
        return count <= tokensTold;
      });
      if (before.length > 0) callbacks.onEvents(before);
    },
  });
};

const engineOf = (): DaemonParts["createEngine"] => {
  if (tokensTold < Number.POSITIVE_INFINITY) return standingStill;
  return paceMs > 0 ? paced : createEngine;
};

const daemon = await serveDaemon(
  {
    model: values.model,
    port: Number(values.port),
    precision: "fast",
    threads: 1,
    kvTokens: 4096,
    maxRows: 8,
  },
  { openVocabulary, createEngine: engineOf() },
);
process.stdout.write(`${daemon.url}\n`);
