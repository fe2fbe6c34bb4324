import { type GenerationRequest, greedy } from "../../src/backends/backend.ts";

export { greedy };

let count = 0;

/** A request that any daemon with a vocabulary of at least 1,000 tokens takes. */
export function generationRequest(changes: Partial<GenerationRequest> = {}): GenerationRequest {
  return {
    id: `request-${count++}`,
    model: "test",
    promptIds: Uint32Array.from({ length: 40 }, (_, index) => index + 1),
    generatedIds: new Uint32Array(0),
    maxNewTokens: 8,
    sampling: greedy,
    stopIds: [],
    grammar: undefined,
    logprobs: undefined,
    salt: "tenant",
    priority: 0,
    deadlineMs: 60_000,
    traceparent: undefined,
    text: { kind: "completion", body: {} },
    ...changes,
  };
}

export async function collect<T>(source: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of source) all.push(item);
  return all;
}

/** The ids of all `tokens` events. */
export function tokensOf(events: ReadonlyArray<{ readonly type: string; readonly ids?: readonly number[] }>): number[] {
  return events.flatMap((event) => (event.type === "tokens" ? [...(event.ids ?? [])] : []));
}
