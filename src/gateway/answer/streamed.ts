import type { Usage } from "../../backends/backend.ts";
import type { Clock } from "../../clock.ts";
import { SluiceError } from "../../errors.ts";
import type { AnswerFinish, AnswerStream } from "../api/answer.ts";
import { errorBody } from "../api/errors.ts";
import { eventStreamHeaders, sseDone, sseEvent, ssePing } from "../api/sse.ts";
import type { EventSink, Exchange } from "../platform/platform.ts";
import type { Delta } from "./choice.ts";

/** Where `relay` puts an answer: a stream, or a body that is sent when it is whole. */
export interface Answer {
  /** Which pool answers, before anything else; a later call (a new attempt) counts until output has been sent. */
  from(pool: string, upstreamModel: string | undefined): void;
  delta(index: number, delta: Delta): void;
  /** What came of this choice counts no more; asked for only where `PreparedRequest.held` says that nobody saw it. */
  restart(index: number): void;
  finish(index: number, reason: AnswerFinish): void;
  complete(usage: Usage): void;
  /** The answer is broken. The caller learns it by status before output was sent, by an event after. */
  fail(error: SluiceError): void;
  /** Nobody listens any more. */
  abandon(error: SluiceError): void;
  readonly response: Promise<Response>;
  /** A 200 is on its way, whatever comes after it. */
  readonly committed: boolean;
}

/** More of this is unread than a caller may leave lying: it goes, so that memory stays bounded. */
const tooSlow = (): SluiceError =>
  new SluiceError({
    status: 503,
    type: "server_error",
    code: "slow_reader",
    message: "The answer was not read fast enough.",
  });

export interface StreamedOptions {
  readonly exchange: Exchange;
  readonly clock: Clock;
  readonly headers: Readonly<Record<string, string>>;
  readonly includeUsage: boolean;
  /** Unread output above this breaks the stream. */
  readonly bufferBytes: number;
  /** Builds the wire format when the model's name is settled. */
  readonly format: (upstreamModel: string | undefined) => AnswerStream;
}

/**
 * A server-sent stream. It opens as late as it can: until the first output a failure still has a status of its own.
 * One write for each batch of tokens.
 */
export class StreamedAnswer implements Answer {
  readonly response: Promise<Response>;
  readonly #options: StreamedOptions;
  readonly #resolve: (response: Response) => void;
  readonly #reject: (error: SluiceError) => void;
  readonly #begun = new Set<number>();
  #stream: AnswerStream | undefined;
  #sink: EventSink | undefined;
  #pool: string | undefined;
  #upstreamModel: string | undefined;
  #over = false;
  #lastWriteAt: number;

  constructor(options: StreamedOptions) {
    const { promise, resolve, reject } = Promise.withResolvers<Response>();
    this.response = promise;
    this.#resolve = resolve;
    this.#reject = reject;
    this.#options = options;
    this.#lastWriteAt = options.clock.now();
  }

  from(pool: string, upstreamModel: string | undefined): void {
    this.#pool = pool;
    this.#upstreamModel = upstreamModel;
  }

  delta(index: number, delta: Delta): void {
    const text = this.#format().delta(index, delta);
    if (text !== "") this.#write(this.#beginning(index) + text);
  }

  restart(index: number): void {
    if (this.#begun.has(index)) throw new Error("a stream cannot take back what it has sent");
  }

  finish(index: number, reason: AnswerFinish): void {
    this.#write(this.#beginning(index) + this.#format().finish(index, reason));
  }

  complete(usage: Usage): void {
    if (this.#over) return;
    const last = (this.#options.includeUsage ? this.#format().usage(usage) : "") + sseDone;
    const sink = this.#opened();
    this.#over = true;
    sink.end(last);
  }

  fail(error: SluiceError): void {
    if (this.#over) return;
    this.#over = true;
    if (this.#sink === undefined) {
      this.#reject(error);
    } else if (error.code === "slow_reader") {
      this.#sink.destroy();
    } else {
      // Bare, with no `choices` beside it: a chunk with both is read as content by one of the SDKs.
      this.#sink.end(sseEvent(errorBody(error)));
    }
  }

  abandon(error: SluiceError): void {
    if (this.#over) return;
    this.#over = true;
    this.#reject(error);
    this.#sink?.destroy();
  }

  get committed(): boolean {
    return this.#sink !== undefined;
  }

  /** Called now and then: after `idleMs` without output a comment keeps proxies from closing the connection. */
  keepAlive(idleMs: number): void {
    if (this.#over || this.#options.clock.now() - this.#lastWriteAt < idleMs) return;
    if (this.#sink !== undefined && this.#sink.pending > 0) return;
    this.#write(ssePing);
  }

  #beginning(index: number): string {
    if (this.#begun.has(index)) return "";
    this.#begun.add(index);
    return this.#format().begin(index);
  }

  #format(): AnswerStream {
    this.#stream ??= this.#options.format(this.#upstreamModel);
    return this.#stream;
  }

  #write(text: string): void {
    if (this.#over) return;
    const sink = this.#opened();
    sink.write(text);
    this.#lastWriteAt = this.#options.clock.now();
    if (sink.pending > this.#options.bufferBytes) throw tooSlow();
  }

  #opened(): EventSink {
    if (this.#sink !== undefined) return this.#sink;
    const pool = this.#pool === undefined ? {} : { "x-sluice-pool": this.#pool };
    const { sink, response } = this.#options.exchange.open({
      ...eventStreamHeaders,
      ...this.#options.headers,
      ...pool,
    });
    this.#sink = sink;
    this.#resolve(response);
    return sink;
  }
}
