import { broken } from "../ndjson.ts";

export interface SseEvent {
  /** `message` where the stream names none. */
  readonly event: string;
  readonly data: string;
}

/**
 * Server-sent events out of bytes, after the WHATWG's event stream format: CR, LF and CRLF, comments, several `data` lines,
 * a byte order mark, characters cut by chunks. `id` and `retry` mean nothing here. An event without its blank line is not
 * an event: the stream was cut in it.
 *
 * Synchronous, one call a chunk: what a chunk completes is handled in one turn. Throws SluiceError `backend_stream_broken`
 * for bytes that are no UTF-8, and for a line or an event longer than `maxEventLength` UTF-16 units.
 */
export class SseParser {
  readonly #decoder = new TextDecoder("utf-8", { fatal: true });
  readonly #maxEventLength: number;
  /** The line that no chunk has ended yet. */
  #line = "";
  #event = "";
  #data: string | undefined;
  /** A CR at a chunk's end has ended its line; a LF at the next one's start belongs to it. */
  #skipLineFeed = false;

  constructor(maxEventLength: number) {
    this.#maxEventLength = maxEventLength;
  }

  push(chunk: Uint8Array): SseEvent[] {
    let text = this.#decode(chunk);
    const events: SseEvent[] = [];
    if (text === "") return events;
    if (this.#skipLineFeed && text.startsWith("\n")) text = text.slice(1);
    this.#skipLineFeed = text.endsWith("\r");
    if (text.includes("\r")) text = text.replace(/\r\n?/g, "\n");
    let from = 0;
    // Only the new text is searched: a long line that comes byte by byte costs no more than its length.
    for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n", from)) {
      const line = this.#line + text.slice(from, end);
      this.#line = "";
      from = end + 1;
      this.#bound(line.length);
      const event = this.#take(line);
      if (event !== undefined) events.push(event);
    }
    this.#line += text.slice(from);
    this.#bound(this.#line.length);
    return events;
  }

  #take(line: string): SseEvent | undefined {
    if (line === "") {
      const event = this.#data === undefined ? undefined : { event: this.#event || "message", data: this.#data };
      this.#event = "";
      this.#data = undefined;
      return event;
    }
    const colon = line.indexOf(":");
    // The colon comes first: a comment, which keeps proxies from closing the connection.
    if (colon === 0) return undefined;
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (field === "data") {
      this.#data = this.#data === undefined ? value : `${this.#data}\n${value}`;
      this.#bound(this.#data.length);
    } else if (field === "event") this.#event = value;
    return undefined;
  }

  #bound(length: number): void {
    if (length > this.#maxEventLength) throw broken("an event is too long");
  }

  #decode(chunk: Uint8Array): string {
    try {
      return this.#decoder.decode(chunk, { stream: true });
    } catch (error) {
      throw broken("it is not UTF-8", error);
    }
  }
}
