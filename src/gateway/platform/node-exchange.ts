import { hash } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import { RESPONSE_ALREADY_SENT } from "@hono/node-server/utils/response";
import type { Context } from "hono";
import { systemClock } from "../../clock.ts";
import { invalidRequest } from "../../errors.ts";
import {
  bodyTooLarge,
  byteCount,
  callerLeft,
  type EventSink,
  type Exchange,
  type Platform,
  type PlatformClock,
} from "./platform.ts";

/** Node's side of an exchange: the raw request and response, past the web streams that cost CPU on every token. */

interface NodeBindings {
  readonly incoming: IncomingMessage;
  readonly outgoing: ServerResponse;
}

/** A caller that takes nothing for this long after its answer ended has gone, whatever its socket says. */
const unreadEndMs = 60_000;

export const nodeClock: PlatformClock = { ...systemClock, wall: () => Date.now() };

export function createNodePlatform(clock: PlatformClock = nodeClock): Platform {
  return {
    name: "node",
    clock,
    sha256: (text) => hash("sha256", text, "hex"),
    exchange: (context) => new NodeExchange(context),
  };
}

class NodeExchange implements Exchange {
  readonly #incoming: IncomingMessage;
  readonly #outgoing: ServerResponse;
  readonly #left = new AbortController();

  constructor(context: Context) {
    const { incoming, outgoing } = context.env as NodeBindings;
    this.#incoming = incoming;
    this.#outgoing = outgoing;
    // `close` comes after every answer; only one that was not complete means that the caller left.
    outgoing.once("close", () => {
      if (!outgoing.writableFinished) this.#left.abort(callerLeft());
    });
    if (outgoing.destroyed) this.#left.abort(callerLeft());
  }

  get signal(): AbortSignal {
    return this.#left.signal;
  }

  header(name: string): string | undefined {
    const value = this.#incoming.headers[name];
    return Array.isArray(value) ? value[0] : value;
  }

  get declaredBytes(): number | undefined {
    return byteCount(this.#incoming.headers["content-length"]);
  }

  readBody(limitBytes: number): Promise<string> {
    const incoming = this.#incoming;
    if ((this.declaredBytes ?? 0) > limitBytes) return Promise.reject(bodyTooLarge(limitBytes));
    return new Promise((resolve, reject) => {
      const chunks: Buffer[] = [];
      let bytes = 0;
      const settle = (finish: () => void): void => {
        incoming.off("data", onData).off("end", onEnd).off("close", onBroken).off("error", onBroken);
        finish();
      };
      const onData = (chunk: Buffer): void => {
        bytes += chunk.length;
        if (bytes > limitBytes) {
          incoming.pause();
          settle(() => reject(bodyTooLarge(limitBytes)));
        } else {
          chunks.push(chunk);
        }
      };
      const onEnd = (): void => {
        settle(() => {
          try {
            resolve(utf8.decode(chunks.length === 1 ? chunks[0] : Buffer.concat(chunks, bytes)));
          } catch {
            reject(invalidRequest("invalid_json", "The body is not valid UTF-8."));
          }
        });
      };
      const onBroken = (): void => settle(() => reject(callerLeft()));
      incoming.on("data", onData).once("end", onEnd).once("close", onBroken).once("error", onBroken);
      // A body that broke off before this listened would never tell.
      if (incoming.destroyed && !incoming.readableEnded) onBroken();
    });
  }

  background(work: Promise<void>): void {
    void work;
  }

  send(status: number, headers: Readonly<Record<string, string>>, body: string): Response {
    this.#outgoing.writeHead(status, { ...headers, "content-length": Buffer.byteLength(body) });
    this.#outgoing.end(body);
    return RESPONSE_ALREADY_SENT;
  }

  open(headers: Readonly<Record<string, string>>): { readonly sink: EventSink; readonly response: Response } {
    this.#outgoing.writeHead(200, headers);
    return { sink: new NodeSink(this.#outgoing), response: RESPONSE_ALREADY_SENT };
  }
}

/** Fatal: a body with broken UTF-8 is refused, not repaired. */
const utf8 = new TextDecoder("utf-8", { fatal: true });

class NodeSink implements EventSink {
  readonly #outgoing: ServerResponse;
  readonly #chunked: boolean;

  constructor(outgoing: ServerResponse) {
    this.#outgoing = outgoing;
    // The head is settled. Node would write a chunk as four pieces, each an object of its own on its way to the socket;
    // framed here it is one string (bench/gateway: a quarter of the CPU of a write).
    this.#chunked = outgoing.chunkedEncoding;
    outgoing.chunkedEncoding = false;
  }

  get pending(): number {
    return this.#outgoing.writableLength;
  }

  write(text: string): void {
    this.#outgoing.write(this.#framed(text));
  }

  end(text: string): void {
    const outgoing = this.#outgoing;
    outgoing.end(this.#chunked ? `${this.#framed(text)}0\r\n\r\n` : text);
    if (outgoing.writableLength > 0) outgoing.setTimeout(unreadEndMs, () => outgoing.destroy());
  }

  destroy(): void {
    this.#outgoing.destroy();
  }

  /** One chunk of HTTP/1.1's chunked coding (RFC 9112, section 7.1); an empty one would end the body. */
  #framed(text: string): string {
    return this.#chunked && text !== "" ? `${Buffer.byteLength(text).toString(16)}\r\n${text}\r\n` : text;
  }
}
