import type { Backend, BackendCapabilities, GenerationEvent, GenerationRequest } from "../../src/backends/backend.ts";
import type { BackendSpec, OpenBackend } from "../../src/backends/open.ts";
import { backendId } from "../../src/backends/open.ts";

/** What one attempt on a scripted backend does: yields events, throws, or waits for its signal. */
export type Script = (request: GenerationRequest, signal: AbortSignal) => AsyncIterable<GenerationEvent>;

export interface ScriptedBackend extends Backend {
  readonly requests: GenerationRequest[];
  script: Script;
  closed: boolean;
  ready: boolean;
  vocabularyHash: string;
  contextLength: number;
  capabilities: BackendCapabilities;
  objection: NonNullable<Backend["objection"]>;
}

export const token: GenerationEvent = { type: "tokens", ids: [7] };
export const accepted: GenerationEvent = { type: "accepted", cachedTokens: 0 };
export const finish: GenerationEvent = {
  type: "finish",
  reason: "stop",
  usage: { promptTokens: 40, cachedTokens: 0, completionTokens: 1 },
};

export async function* answers(...events: readonly (GenerationEvent | Error)[]): AsyncGenerator<GenerationEvent> {
  for (const event of events) {
    if (event instanceof Error) throw event;
    yield event;
  }
}

/** Never yields again; ends with the signal's reason, as a closed connection does. */
export async function* silence(signal: AbortSignal): AsyncGenerator<GenerationEvent> {
  await new Promise<never>((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

/** Backends for failures that a healthy engine cannot be made to have, on a virtual clock. */
export function scriptedBackends(): { readonly open: OpenBackend; readonly byId: Map<string, ScriptedBackend> } {
  const byId = new Map<string, ScriptedBackend>();
  const open = (spec: BackendSpec): ScriptedBackend => {
    const backend: ScriptedBackend = {
      id: backendId(spec),
      capabilities: {
        tokenIds: true,
        structuredOutput: [],
        kvEvents: false,
        prefillDecodeSplit: false,
        sleep: false,
        priority: true,
        cacheSalt: true,
        abort: true,
        assistantPrefill: true,
      },
      requests: [],
      script: () => answers(accepted, token, finish),
      closed: false,
      ready: true,
      vocabularyHash: "v",
      contextLength: 2048,
      objection: () => undefined,
      async info() {
        return {
          model: "m",
          vocabularyHash: backend.vocabularyHash,
          tokenizerFingerprint: "f",
          blockSize: 16,
          contextLength: backend.contextLength,
          kvTokens: 2 * backend.contextLength,
          maxRows: 8,
        };
      },
      generate(request, signal) {
        backend.requests.push(request);
        return backend.script(request, signal);
      },
      async health() {
        return backend.ready ? { ready: true } : { ready: false, reason: "told so" };
      },
      async load() {
        return { runningRows: 0, queuedRows: 0, pendingPrefillTokens: 0, freeKvTokens: 4096 };
      },
      async close() {
        backend.closed = true;
      },
    };
    byId.set(backend.id, backend);
    return backend;
  };
  return { open, byId };
}
