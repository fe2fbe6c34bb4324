import type { ServerResponse } from "node:http";
import type { EngineEvent } from "../../engine/engine.ts";

interface Generation {
  readonly requestId: string;
  readonly engineId: number;
  readonly response: ServerResponse;
  /** Undefined once a token came: from then on silence means a stall. */
  waiting: { prefilled: number } | undefined;
}

export interface GenerationsOptions {
  readonly cancel: (engineId: number) => void;
  /** Unread bytes a slow reader may leave in this process before its generation is cancelled. */
  readonly maxBufferedBytes: number;
}

/** The answers under way: which connection gets which of the engine's events. */
export class Generations {
  readonly #options: GenerationsOptions;
  readonly #byEngine = new Map<number, Generation>();
  readonly #byRequest = new Map<string, Generation>();
  /** Cancelled by a caller that left, by DELETE, and for reading too slowly. */
  readonly counts = { cancelled: 0, tooSlow: 0 };

  constructor(options: GenerationsOptions) {
    this.#options = options;
  }

  get size(): number {
    return this.#byEngine.size;
  }

  has(requestId: string): boolean {
    return this.#byRequest.has(requestId);
  }

  /** Call in the same turn as the submit, so that no event of it can come earlier. */
  add(requestId: string, engineId: number, response: ServerResponse): void {
    const generation: Generation = { requestId, engineId, response, waiting: { prefilled: 0 } };
    this.#byEngine.set(engineId, generation);
    this.#byRequest.set(requestId, generation);
    response.once("close", () => this.#cancel(generation));
  }

  /** Ends the answer with an error line, since a caller other than its reader may have asked. */
  cancelRequest(requestId: string): void {
    const generation = this.#byRequest.get(requestId);
    if (generation !== undefined) this.#break(generation, "cancelled", "The generation was cancelled.", false);
  }

  /** All events of one engine step: one write a generation. */
  deliver(events: readonly EngineEvent[]): void {
    const lines = new Map<Generation, string>();
    for (const event of events) {
      const generation = this.#byEngine.get(event.id);
      if (generation === undefined) continue;
      if (event.type === "tokens") generation.waiting = undefined;
      if (event.type === "progress" && generation.waiting !== undefined) generation.waiting.prefilled = event.prefilled;
      lines.set(generation, (lines.get(generation) ?? "") + toLine(event));
      if (event.type === "finish" || event.type === "error") {
        this.#forget(generation);
        generation.response.end(lines.get(generation));
        lines.delete(generation);
      }
    }
    for (const [generation, text] of lines) this.#write(generation, text);
  }

  /** Tells every generation without a token yet that the engine is at work. */
  tellWaiting(): void {
    for (const generation of this.#byEngine.values()) {
      if (generation.waiting === undefined) continue;
      this.#write(generation, `${JSON.stringify({ type: "progress", prefilled: generation.waiting.prefilled })}\n`);
    }
  }

  breakAll(code: string, message: string, retryable: boolean): void {
    for (const generation of this.#byEngine.values()) this.#break(generation, code, message, retryable);
  }

  #write(generation: Generation, text: string): void {
    const { response } = generation;
    response.write(text);
    if (response.writableLength <= this.#options.maxBufferedBytes) return;
    // The socket takes nothing any more, so an error line would not arrive either: reset it.
    this.counts.tooSlow++;
    this.#cancel(generation);
    response.destroy();
  }

  #break(generation: Generation, code: string, message: string, retryable: boolean): void {
    this.#cancel(generation);
    generation.response.end(`${JSON.stringify({ type: "error", code, message, retryable })}\n`);
  }

  #cancel(generation: Generation): void {
    if (!this.#forget(generation)) return;
    this.counts.cancelled++;
    this.#options.cancel(generation.engineId);
  }

  #forget(generation: Generation): boolean {
    this.#byRequest.delete(generation.requestId);
    return this.#byEngine.delete(generation.engineId);
  }
}

function toLine(event: EngineEvent): string {
  if (event.type === "tokens" && event.logprobs === undefined)
    return `{"type":"tokens","ids":[${event.ids.join(",")}]}\n`;
  return `${JSON.stringify({ ...event, id: undefined })}\n`;
}
