import type { Context } from "hono";
import type { Clock } from "../../clock.ts";
import { SluiceError } from "../../errors.ts";

/** What differs between Node and Workers. Everything else in the gateway is written against this and web standards. */
export interface Platform {
  readonly name: "node" | "workers";
  readonly clock: PlatformClock;
  /** Lower-case hex. Synchronous on Node, where it costs about a microsecond; a promise where only WebCrypto is left. */
  sha256(text: string): string | Promise<string>;
  /** The HTTP exchange behind a Hono context. */
  exchange(context: Context): Exchange;
}

/** Time for durations, and the wall's for what callers and logs see. */
export interface PlatformClock extends Clock {
  /** Milliseconds since 1970. */
  wall(): number;
}

/** One request on its connection. */
export interface Exchange {
  header(name: string): string | undefined;
  /** Aborts when the caller leaves before the answer is complete. */
  readonly signal: AbortSignal;
  /** What `content-length` says; undefined for a chunked body. */
  readonly declaredBytes: number | undefined;
  /**
   * The body as text. Counts bytes as they come, so a chunked body meets the same bound as one with a `content-length`.
   * Throws SluiceError 413 above `limitBytes`, 400 when it is not UTF-8 or stops short.
   */
  readBody(limitBytes: number): Promise<string>;
  /** Keeps work alive that outlives the response: the rest of a stream, and settling it. It must not reject. */
  background(work: Promise<void>): void;
  /** A whole answer. */
  send(status: number, headers: Readonly<Record<string, string>>, body: string): Response;
  /** Starts a streamed answer: the status is on its way to the caller after this. */
  open(headers: Readonly<Record<string, string>>): { readonly sink: EventSink; readonly response: Response };
}

/** Where a streamed answer goes. Writing never waits: a slow reader is the writer's to bound by `pending`. */
export interface EventSink {
  write(text: string): void;
  /** Bytes (Node) or UTF-16 units (Workers) written but not yet taken by the connection. */
  readonly pending: number;
  /** Ends the answer with `text`, after what is pending. */
  end(text: string): void;
  /** Breaks the connection, so that the caller cannot take what came for a complete answer. */
  destroy(): void;
}

/** A `content-length` header's value, where it is one. */
export const byteCount = (header: string | null | undefined): number | undefined =>
  header !== null && header !== undefined && /^\d+$/.test(header) ? Number(header) : undefined;

/** Nobody reads this one; it ends the stages and is counted as `cancelled`, not as an error. */
export const callerLeft = (): SluiceError =>
  new SluiceError({
    status: 499,
    type: "invalid_request_error",
    code: "client_closed_request",
    message: "The caller left before the answer was complete.",
    metricLabel: "cancelled",
  });

export const bodyTooLarge = (limitBytes: number): SluiceError =>
  new SluiceError({
    status: 413,
    type: "invalid_request_error",
    code: "request_too_large",
    message: `The body is larger than ${limitBytes} bytes.`,
  });
