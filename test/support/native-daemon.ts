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
    // A tiny model answers within a few milliseconds; at one step each so many it can be met in the middle.
    "pace-ms": { type: "string", default: "0" },
  },
});
const paceMs = Number(values["pace-ms"]);

const paced: DaemonParts["createEngine"] = (options, callbacks) => {
  const steps: Array<readonly EngineEvent[]> = [];
  void (async () => {
    for await (const _ of setInterval(paceMs)) {
      const step = steps.shift();
      if (step !== undefined) callbacks.onEvents(step);
    }
  })();
  return createEngine(options, { ...callbacks, onEvents: (events) => void steps.push(events) });
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
  { openVocabulary, createEngine: paceMs > 0 ? paced : createEngine },
);
process.stdout.write(`${daemon.url}\n`);
