import type { Writable } from "node:stream";
import type { EngineEvent } from "../../engine/engine.ts";

/** A generation as an outlet knows it. */
export interface Carried {
  /** The caller's name for it on a stream; anything on an answer of its own. */
  readonly number: number;
  /** `,token` for each token that waits for the next line of a stream. */
  unsent: string;
}

/** What goes over the wire; an error may also be the daemon's own. */
export type OutgoingEvent =
  | EngineEvent
  | (Omit<Extract<EngineEvent, { type: "error" }>, "id"> & { readonly id?: number });

/** Where the events of generations are written: one generation's own answer, or a stream of many. */
export interface Outlet<Generation extends Carried = Carried> {
  /** By number. */
  readonly carried: Map<number, Generation>;
  /** Nothing is written before `flush`. A `finish` or `error` is the generation's last. */
  take(generation: Generation, event: OutgoingEvent): void;
  /** At most one write. False when the reader has left more than the bound unread: no error line would reach it either. */
  flush(): boolean;
  destroy(): void;
}

/** The body of one generate: a line an event. */
export class AnswerOutlet<Generation extends Carried> implements Outlet<Generation> {
  readonly carried = new Map<number, Generation>();
  readonly #response: Writable;
  readonly #maxBufferedBytes: number;
  #text = "";
  #ended = false;

  constructor(response: Writable, maxBufferedBytes: number) {
    this.#response = response;
    this.#maxBufferedBytes = maxBufferedBytes;
  }

  take(_: Generation, event: OutgoingEvent): void {
    this.#text += toLine(event);
    this.#ended ||= event.type === "finish" || event.type === "error";
  }

  flush(): boolean {
    const text = this.#text;
    this.#text = "";
    if (this.#ended) {
      this.#response.end(text);
      return true;
    }
    if (text !== "") this.#response.write(text);
    return this.#response.writableLength <= this.#maxBufferedBytes;
  }

  destroy(): void {
    this.#response.destroy();
  }
}

/** A stream of frames (protocol.ts): a line a step for all its generations, and fewer while its reader is behind. */
export class StreamOutlet<Generation extends Carried> implements Outlet<Generation> {
  readonly carried = new Map<number, Generation>();
  readonly id: string;
  readonly #response: Writable;
  readonly #maxBufferedBytes: number;
  #step = 0;
  #before = "";
  #after = "";
  /** Those with `unsent` tokens. */
  #speaking: Generation[] = [];
  /** Characters that wait for the next line. */
  #waiting = 0;
  #quiet = false;

  constructor(id: string, response: Writable, maxBufferedBytes: number) {
    this.id = id;
    this.#response = response;
    this.#maxBufferedBytes = maxBufferedBytes;
    response.on("drain", () => this.flush());
    response.write(`{"stream":${JSON.stringify(id)}}\n`);
  }

  take(generation: Generation, event: OutgoingEvent): void {
    if (event.type === "tokens" && event.logprobs === undefined) {
      if (generation.unsent === "") this.#speaking.push(generation);
      const { length } = generation.unsent;
      for (const id of event.ids) generation.unsent += `,${id}`;
      this.#waiting += generation.unsent.length - length;
      return;
    }
    const text = JSON.stringify({ ...event, id: generation.number });
    this.#waiting += text.length;
    if (event.type === "accepted" || event.type === "progress") this.#before += `,${text}`;
    else this.#after += `,${text}`;
  }

  flush(): boolean {
    // While the socket takes nothing, steps gather here and become one line, in which a generation has one row.
    if (this.#response.writableNeedDrain) return this.#waiting <= this.#maxBufferedBytes;
    this.#writeWaiting();
    return true;
  }

  heartbeat(): void {
    if (this.#quiet && !this.#response.writableNeedDrain) this.#write("", "", "");
    this.#quiet = true;
  }

  end(): void {
    this.#writeWaiting();
    this.#response.end();
  }

  destroy(): void {
    this.#response.destroy();
  }

  #writeWaiting(): void {
    if (this.#waiting === 0) return;
    let rows = "";
    for (const generation of this.#speaking) {
      rows += `${rows === "" ? "[" : ",["}${generation.number}${generation.unsent}]`;
      generation.unsent = "";
    }
    const before = this.#before === "" ? "" : `,"before":[${this.#before.slice(1)}]`;
    const after = this.#after === "" ? "" : `,"after":[${this.#after.slice(1)}]`;
    this.#speaking = [];
    this.#before = "";
    this.#after = "";
    this.#waiting = 0;
    this.#write(before, rows, after);
  }

  #write(before: string, rows: string, after: string): void {
    this.#quiet = false;
    this.#response.write(`{"step":${++this.#step}${before},"rows":[${rows}]${after}}\n`);
  }
}

function toLine(event: OutgoingEvent): string {
  if (event.type === "tokens" && event.logprobs === undefined)
    return `{"type":"tokens","ids":[${event.ids.join(",")}]}\n`;
  return `${JSON.stringify({ ...event, id: undefined })}\n`;
}
