import type { Backend, BackendInfo } from "../../backends/backend.ts";
import type { Dispatcher } from "../dispatch/dispatch.ts";
import type { DispatchEvent, PreparedRequest } from "../request.ts";

/** What a scripted backend does for one choice. */
export type Script = (request: PreparedRequest, choice: number, signal: AbortSignal) => AsyncIterable<DispatchEvent>;

export interface ScriptedDispatcher extends Pick<Dispatcher, "dispatch" | "info" | "ready"> {
  script: Script;
  readonly requests: PreparedRequest[];
  isReady: boolean;
  /** Generators that have not come to their end. */
  open: number;
  /** Undefined = no backend has answered yet. */
  known: BackendInfo | undefined;
}

/** The seam below `relay`, driven by a test: same contract, no network. */
export function scriptedDispatcher(script: Script, info: Partial<BackendInfo> = {}): ScriptedDispatcher {
  const dispatcher: ScriptedDispatcher = {
    script,
    requests: [],
    isReady: true,
    open: 0,
    known: {
      model: "tiny",
      vocabularyHash: "",
      tokenizerFingerprint: "",
      blockSize: 16,
      contextLength: 2048,
      kvTokens: 65_536,
      maxRows: 8,
      ...info,
    },
    async *dispatch(request, choice, signal) {
      dispatcher.requests.push(request);
      dispatcher.open++;
      try {
        yield* dispatcher.script(request, choice, signal);
      } finally {
        dispatcher.open--;
      }
    },
    info: () => dispatcher.known,
    ready: () => dispatcher.isReady,
  };
  return dispatcher;
}

const bytes = new TextEncoder();

export const attempt = (upstreamModel?: string): DispatchEvent => ({
  type: "attempt",
  pool: "east",
  backend: "east/0",
  upstreamModel,
  decision: {
    pool: "east",
    backend: { id: "east/0" } as Backend,
    predictedMs: 1,
    matchedBlocks: 0,
    candidates: [],
  },
});

/** The byte tokenizer's tokens of `text`. */
export const tokens = (text: string): Extract<DispatchEvent, { type: "tokens" }> => ({
  type: "tokens",
  ids: Array.from(bytes.encode(text)),
});

export const finish = (reason: "stop" | "length", completionTokens: number, promptTokens = 10): DispatchEvent => ({
  type: "finish",
  reason,
  usage: { promptTokens, cachedTokens: 4, completionTokens },
});

/** Says `pieces`, one event each, and stops. */
export const say = (...pieces: string[]): Script =>
  async function* (request) {
    yield attempt();
    yield { type: "accepted", cachedTokens: 4 };
    let count = 0;
    for (const piece of pieces) {
      const event = tokens(piece);
      count += event.ids.length;
      yield event;
    }
    yield finish("stop", count + 1, request.promptIds.length);
  };

/** Waits until `signal` aborts; rejects with its reason, as a dispatcher does. */
export const untilAborted = (signal: AbortSignal): Promise<never> =>
  new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason);
    else signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
