import { randomUUID } from "node:crypto";
import type { ServerResponse } from "node:http";
import type { EngineEvent } from "../../engine/engine.ts";
import { AnswerOutlet, type Carried, type Outlet, StreamOutlet } from "./outlets.ts";

interface Generation extends Carried {
  readonly requestId: string;
  readonly engineId: number;
  readonly outlet: Outlet<Generation>;
  /** Undefined once a token came: from then on silence means a stall. */
  waiting: { prefilled: number } | undefined;
}

export type Stream = StreamOutlet<Generation>;

export interface GenerationsOptions {
  readonly cancel: (engineId: number) => void;
  /** Unread bytes a slow reader may leave in this process before what it reads is cancelled. */
  readonly maxBufferedBytes: { readonly answer: number; readonly stream: number };
  readonly maxStreams: number;
}

/** Cancels that came before what they cancel; older ones are forgotten. */
const maxEarlyCancels = 1024;

/** The answers under way: which of the engine's events goes where. */
export class Generations {
  readonly #options: GenerationsOptions;
  readonly #byEngine = new Map<number, Generation>();
  readonly #byRequest = new Map<string, Generation>();
  readonly #streams = new Map<string, Stream>();
  readonly #early = new Set<string>();
  /** Cancelled by a caller that left, by DELETE, and for reading too slowly. */
  readonly counts = { cancelled: 0, tooSlow: 0 };

  constructor(options: GenerationsOptions) {
    this.#options = options;
  }

  get size(): number {
    return this.#byEngine.size;
  }

  get streams(): number {
    return this.#streams.size;
  }

  get streamsFull(): boolean {
    return this.#streams.size >= this.#options.maxStreams;
  }

  has(requestId: string): boolean {
    return this.#byRequest.has(requestId);
  }

  /** Whether a cancel for this id has come already; it counts once. */
  takeEarlyCancel(requestId: string): boolean {
    return this.#early.delete(requestId);
  }

  /** The response's head has been written. The stream stays until its connection closes. */
  openStream(response: ServerResponse): void {
    const stream: Stream = new StreamOutlet(randomUUID(), response, this.#options.maxBufferedBytes.stream);
    this.#streams.set(stream.id, stream);
    response.once("close", () => {
      this.#streams.delete(stream.id);
      this.#dropped(stream);
    });
  }

  stream(id: string): Stream | undefined {
    return this.#streams.get(id);
  }

  /** Call in the same turn as the submit, so that no event of it can come earlier. */
  addToStream(requestId: string, engineId: number, stream: Stream, number: number): void {
    this.#add({ requestId, engineId, outlet: stream, number, unsent: "", waiting: { prefilled: 0 } });
  }

  /** As `addToStream`, for a generation whose events are the answer itself. */
  addAnswer(requestId: string, engineId: number, response: ServerResponse): void {
    const outlet = new AnswerOutlet<Generation>(response, this.#options.maxBufferedBytes.answer);
    this.#add({ requestId, engineId, outlet, number: engineId, unsent: "", waiting: { prefilled: 0 } });
    response.once("close", () => this.#dropped(outlet));
  }

  /** Ends the answer with an error, since a caller other than its reader may have asked. */
  cancelRequest(requestId: string): void {
    const generation = this.#byRequest.get(requestId);
    if (generation !== undefined) {
      this.#break(generation, "cancelled", "The generation was cancelled.", false);
      this.#flush(generation.outlet);
      return;
    }
    this.#early.add(requestId);
    for (const oldest of this.#early) {
      if (this.#early.size <= maxEarlyCancels) break;
      this.#early.delete(oldest);
    }
  }

  /** All events of one engine step: one write an outlet. */
  deliver(events: readonly EngineEvent[]): void {
    const touched = new Set<Outlet<Generation>>();
    for (const event of events) {
      const generation = this.#byEngine.get(event.id);
      if (generation === undefined) continue;
      if (event.type === "tokens") generation.waiting = undefined;
      if (event.type === "progress") {
        // Behind a token it would come too late to mean anything.
        if (generation.waiting === undefined) continue;
        generation.waiting.prefilled = event.prefilled;
      }
      generation.outlet.take(generation, event);
      touched.add(generation.outlet);
      if (event.type === "finish" || event.type === "error") this.#forget(generation);
    }
    for (const outlet of touched) this.#flush(outlet);
  }

  /** Tells every generation without a token yet that the engine is at work. */
  tellWaiting(): void {
    const touched = new Set<Outlet<Generation>>();
    for (const generation of this.#byEngine.values()) {
      if (generation.waiting === undefined) continue;
      const { engineId: id, outlet } = generation;
      outlet.take(generation, { type: "progress", id, prefilled: generation.waiting.prefilled });
      touched.add(outlet);
    }
    for (const outlet of touched) this.#flush(outlet);
  }

  /** A sign of life on streams that had none since the last call. */
  heartbeat(): void {
    for (const stream of this.#streams.values()) stream.heartbeat();
  }

  breakAll(code: string, message: string, retryable: boolean): void {
    const touched = new Set<Outlet<Generation>>();
    for (const generation of this.#byEngine.values()) {
      this.#break(generation, code, message, retryable);
      touched.add(generation.outlet);
    }
    for (const outlet of touched) this.#flush(outlet);
  }

  closeStreams(): void {
    for (const stream of this.#streams.values()) stream.end();
  }

  #add(generation: Generation): void {
    this.#byEngine.set(generation.engineId, generation);
    this.#byRequest.set(generation.requestId, generation);
    generation.outlet.carried.set(generation.number, generation);
  }

  #flush(outlet: Outlet<Generation>): void {
    if (outlet.flush()) return;
    this.counts.tooSlow += outlet.carried.size;
    this.#dropped(outlet);
    outlet.destroy();
  }

  /** Nobody reads there any more. */
  #dropped(outlet: Outlet<Generation>): void {
    for (const generation of outlet.carried.values()) this.#cancel(generation);
  }

  #break(generation: Generation, code: string, message: string, retryable: boolean): void {
    this.#cancel(generation);
    generation.outlet.take(generation, { type: "error", code, message, retryable });
  }

  #cancel(generation: Generation): void {
    if (!this.#forget(generation)) return;
    this.counts.cancelled++;
    this.#options.cancel(generation.engineId);
  }

  #forget(generation: Generation): boolean {
    this.#byRequest.delete(generation.requestId);
    generation.outlet.carried.delete(generation.number);
    return this.#byEngine.delete(generation.engineId);
  }
}
