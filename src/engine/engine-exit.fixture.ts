/** A process that leaves its engine in the state named by the third argument: `forget`, `exit-while-busy` or `collect`. */
import { createEngine } from "./create.ts";

const [model = "", ending = ""] = process.argv.slice(2);

async function start() {
  return await createEngine(
    {
      model,
      precision: "exact",
      threads: 1,
      kvTokens: 1024,
      maxRows: 2,
      maxStepTokens: 64,
      maxQueued: 4,
      vocabulary: { tokens: [], stopIds: [] },
      grammarCacheBytes: 1024,
    },
    {
      onEvents: () => {
        if (ending === "exit-while-busy") process.exit(0);
      },
    },
  );
}

if (ending === "collect") {
  // Nothing holds these engines but their own threads.
  for (let i = 0; i < 3; i++) await start();
  globalThis.gc?.();
} else {
  const engine = await start();
  if (ending === "exit-while-busy") {
    engine.submit({
      promptIds: Uint32Array.of(1, 2, 3),
      generatedIds: new Uint32Array(),
      maxNewTokens: 250,
      sampling: {
        temperature: 0,
        topK: 0,
        topP: 1,
        minP: 0,
        repetitionPenalty: 1,
        presencePenalty: 0,
        frequencyPenalty: 0,
        logitBias: [],
        bannedSequences: [],
        seed: 0,
        choice: 0,
      },
      stopIds: [],
      grammar: undefined,
      logprobs: undefined,
      salt: "",
      priority: 0,
      deadlineMs: 60_000,
    });
  }
}
