import type { Engine, EngineEvent } from "../../engine/engine.ts";
import { SluiceError } from "../../errors.ts";
import { greedy } from "../backend.ts";

const salt = "sluice:warm-up";

/**
 * Resolves when the engine has produced one token; throws SluiceError `warm_up_failed` when it will not. It also pays once
 * for what a first request would pay: page faults of the weights, thread start, code paths chosen at run time.
 */
export async function producesToken(
  engine: Engine,
  listen: (listener: (events: readonly EngineEvent[]) => void) => void,
): Promise<void> {
  const failed = (message: string) =>
    new SluiceError({ status: 500, type: "server_error", code: "warm_up_failed", message });
  await new Promise<void>((resolve, reject) => {
    listen((events) => {
      for (const event of events) {
        if (event.type === "finish") resolve();
        if (event.type === "error") reject(failed(event.message));
      }
    });
    const submitted = engine.submit({
      promptIds: Uint32Array.of(0),
      generatedIds: new Uint32Array(0),
      maxNewTokens: 1,
      sampling: greedy,
      stopIds: [],
      grammar: undefined,
      logprobs: undefined,
      salt,
      priority: 0,
      deadlineMs: 120_000,
    });
    if ("refused" in submitted) reject(failed(submitted.message));
  });
}
