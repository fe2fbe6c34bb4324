import { SluiceError } from "../../errors.ts";
import type { GenerationEvent } from "../backend.ts";
import type { HttpResponse } from "../http.ts";
import { broken, readNdjson } from "../ndjson.ts";
import { daemonError, readBounded } from "./client-errors.ts";
import { streamFrame, streamOpened } from "./protocol.ts";

/** One generation's end of a link. */
export interface LinkReader {
  /** Queues; nobody is woken before `wake`. */
  take(event: GenerationEvent): void;
  takeTokens(ids: number[]): void;
  /** All that came at once was taken. Returns what its sink wants called when that is so of every reader. */
  wake(): (() => void) | undefined;
  /** The link is gone and nothing more will come. */
  lost(error: SluiceError): void;
}

/**
 * One stream of a daemon (protocol.ts), shared by all generations there. All lines of one read are taken before anyone is
 * woken, so that a reader that fell behind gets them as one.
 */
export class Link {
  readonly id: string;
  readonly #response: HttpResponse;
  readonly #onClose: () => void;
  readonly #readers = new Map<number, LinkReader>();
  readonly #touched = new Set<LinkReader>();
  readonly #stepEnds = new Set<() => void>();
  #lastNumber = 0;
  #step = 0;
  #failure: SluiceError | undefined;

  private constructor(id: string, response: HttpResponse, onClose: () => void) {
    this.id = id;
    this.#response = response;
    this.#onClose = onClose;
  }

  /**
   * Undefined when the daemon knows no streams. Throws SluiceError as the daemon refused, or `backend_stream_broken`.
   * `onClose` is called once, when the link can carry no more.
   */
  static async open(response: HttpResponse, maxLineBytes: number, onClose: () => void): Promise<Link | undefined> {
    if (response.status === 404) {
      await readBounded(response);
      return undefined;
    }
    if (response.status !== 200) throw await daemonError(response);
    const lines = readNdjson(response.body, maxLineBytes);
    try {
      const [first, ...rest] = (await lines.next()).value ?? [];
      const opened = streamOpened.safeParse(first);
      if (!opened.success) throw broken("it is no stream", opened.error);
      const link = new Link(opened.data.stream, response, onClose);
      void link.#read(rest, lines);
      return link;
    } catch (error) {
      response.destroy();
      throw asBroken(error);
    }
  }

  /** The number under which the daemon is to send what it says. Throws where the link is gone. */
  attach(reader: LinkReader): number {
    if (this.#failure !== undefined) throw this.#failure;
    this.#readers.set(++this.#lastNumber, reader);
    return this.#lastNumber;
  }

  /** What still comes under this number is ignored. */
  detach(number: number): void {
    this.#readers.delete(number);
  }

  /** Every reader has lost it; the daemon cancels what it still has there. */
  close(failure: SluiceError): void {
    if (this.#failure !== undefined) return;
    this.#failure = failure;
    this.#response.destroy();
    this.#onClose();
    for (const reader of this.#readers.values()) reader.lost(failure);
    this.#readers.clear();
  }

  async #read(first: readonly unknown[], lines: AsyncIterable<readonly unknown[]>): Promise<void> {
    try {
      this.#take(first);
      for await (const some of lines) this.#take(some);
      this.close(broken("its stream ended"));
    } catch (error) {
      this.close(asBroken(error));
    }
  }

  #take(lines: readonly unknown[]): void {
    try {
      for (const line of lines) this.#frame(line);
    } finally {
      // Also of what came before a line that nobody can read.
      for (const reader of this.#touched) {
        const stepEnd = reader.wake();
        if (stepEnd !== undefined) this.#stepEnds.add(stepEnd);
      }
      this.#touched.clear();
      for (const stepEnd of this.#stepEnds) stepEnd();
      this.#stepEnds.clear();
    }
  }

  #frame(line: unknown): void {
    const parsed = streamFrame.safeParse(line);
    if (!parsed.success) throw broken("a line is malformed", parsed.error);
    const { step, before, rows, after } = parsed.data;
    if (step !== ++this.#step) throw broken("a line is missing");
    for (const { id, ...event } of before) this.#reader(id)?.take(event);
    for (const row of rows) {
      const number = row.shift();
      if (number !== undefined) this.#reader(number)?.takeTokens(row);
    }
    for (const { id, ...event } of after) this.#reader(id)?.take(event);
  }

  /** Undefined for a generation that was left: its last news may have been on their way. */
  #reader(number: number): LinkReader | undefined {
    const reader = this.#readers.get(number);
    if (reader !== undefined) this.#touched.add(reader);
    return reader;
  }
}

const asBroken = (error: unknown): SluiceError =>
  error instanceof SluiceError ? error : broken("the connection broke", error);
