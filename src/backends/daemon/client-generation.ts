import { asSluiceError, type SluiceError } from "../../errors.ts";
import type { GenerationEvent, GenerationRequest, TokenSink } from "../backend.ts";
import { broken } from "../ndjson.ts";
import type { Link, LinkReader } from "./client-link.ts";
import { abortError } from "./client-request.ts";
import type { GenerateBody } from "./protocol.ts";

/** What a generation needs of its backend. */
export interface LinkTransport {
  /** The backend's open link, or one that is being opened; undefined where the daemon has none to give. */
  link(): Promise<Link | undefined>;
  /**
   * Resolves when the daemon has taken it on, or with its refusal (`unknown_stream` when the link is gone there). Throws
   * where nobody knows which: the connection broke, or `signal` aborted.
   */
  submit(
    request: GenerationRequest,
    stream: NonNullable<GenerateBody["stream"]>,
    signal: AbortSignal,
  ): Promise<SluiceError | undefined>;
  /** Fire and forget. */
  cancel(id: string): void;
  /** The same without a link. */
  alone(request: GenerationRequest, signal: AbortSignal): AsyncIterator<GenerationEvent, undefined>;
}

interface Waiting {
  resolve(
    result: IteratorResult<GenerationEvent, undefined> | Promise<IteratorResult<GenerationEvent, undefined>>,
  ): void;
  reject(error: SluiceError): void;
}

/**
 * One generation on a link, as `Backend.generate` gives it: submitted with the first `next`. Tokens that came before its
 * reader asked again are one event. Written by hand, since an async generator would cost each token another promise.
 */
export class LinkedGeneration implements AsyncIterableIterator<GenerationEvent, undefined>, LinkReader {
  readonly #transport: LinkTransport;
  readonly #request: GenerationRequest;
  readonly #signal: AbortSignal;
  readonly #sink: TokenSink | undefined;
  /** The sink has had something since the last `wake`. */
  #sinkUsed = false;
  readonly #events: GenerationEvent[] = [];
  /** The ids of the last queued event, where those of another may join it. */
  #open: number[] | undefined;
  #waiting: Waiting | undefined;
  #failure: SluiceError | undefined;
  #begun = false;
  /** Nothing more will be queued. */
  #ended = false;
  /** The daemon has been asked and has not answered yet. */
  #submitting = false;
  /** Something has come, so the daemon has taken it on, whatever its answer says. */
  #heard = false;
  /** How the link ended while `#submitting`. */
  #lost: SluiceError | undefined;
  #place: { readonly link: Link; readonly number: number } | undefined;
  #alone: AsyncIterator<GenerationEvent, undefined> | undefined;
  #produced = 0;

  constructor(transport: LinkTransport, request: GenerationRequest, signal: AbortSignal, sink: TokenSink | undefined) {
    this.#transport = transport;
    this.#request = request;
    this.#signal = signal;
    this.#sink = sink;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  next(): Promise<IteratorResult<GenerationEvent, undefined>> {
    if (!this.#begun) this.#begin();
    if (this.#alone !== undefined) return this.#alone.next();
    const result = this.#take();
    if (result !== undefined) return Promise.resolve(result);
    if (this.#failure === undefined) {
      return new Promise((resolve, reject) => {
        this.#waiting = { resolve, reject };
      });
    }
    const failure = this.#failure;
    this.#failure = undefined;
    return Promise.reject(failure);
  }

  async return(): Promise<IteratorResult<GenerationEvent, undefined>> {
    await this.#alone?.return?.();
    this.#begun = true;
    this.#leave();
    this.#events.length = 0;
    this.#failure = undefined;
    this.#settle();
    return { done: true, value: undefined };
  }

  take(event: GenerationEvent): void {
    if (this.#ended) return;
    this.#heard = true;
    if (event.type === "tokens") this.#count(event.ids.length);
    if (this.#ended) return;
    this.#open = undefined;
    this.#events.push(event);
    if (event.type === "finish" || event.type === "error") this.#end();
  }

  takeTokens(ids: number[]): void {
    if (this.#ended) return;
    this.#heard = true;
    this.#count(ids.length);
    if (this.#ended) return;
    if (this.#sink !== undefined && this.#waiting !== undefined && this.#events.length === 0) {
      this.#pass(this.#sink, ids);
      return;
    }
    if (this.#open !== undefined) {
      for (const id of ids) this.#open.push(id);
      return;
    }
    this.#open = ids;
    this.#events.push({ type: "tokens", ids });
  }

  wake(): (() => void) | undefined {
    this.#settle();
    if (!this.#sinkUsed) return undefined;
    this.#sinkUsed = false;
    return this.#sink?.stepEnd;
  }

  lost(error: SluiceError): void {
    // Before the daemon's word on the request it may turn out that this was an old link, which another can replace.
    if (this.#submitting && !this.#heard) this.#lost = error;
    else this.#fail(error);
  }

  #fail(error: SluiceError): void {
    if (this.#ended) return;
    this.#leave();
    this.#failure = error;
    this.#settle();
  }

  /** Answers the `next` that waits, if there is an answer by now. */
  #settle(): void {
    const waiting = this.#waiting;
    if (waiting === undefined) return;
    const result = this.#take();
    if (result === undefined && this.#failure === undefined) return;
    this.#waiting = undefined;
    if (result !== undefined) waiting.resolve(result);
    else if (this.#failure !== undefined) {
      waiting.reject(this.#failure);
      this.#failure = undefined;
    }
  }

  #pass(sink: TokenSink, ids: number[]): void {
    this.#sinkUsed = true;
    try {
      sink.tokens(ids);
    } catch (error) {
      // Its fault alone: the others on the link must not pay for it.
      this.#fail(asSluiceError(error));
    }
  }

  /** Undefined = nothing to tell yet, or a failure. */
  #take(): IteratorResult<GenerationEvent, undefined> | undefined {
    const value = this.#events.shift();
    if (value === undefined) {
      return this.#ended && this.#failure === undefined ? { done: true, value: undefined } : undefined;
    }
    if (this.#events.length === 0) this.#open = undefined;
    return { done: false, value };
  }

  #count(tokens: number): void {
    this.#produced += tokens;
    // Admission holds the caller to this; a backend that runs past it would be charged to nobody.
    if (this.#produced > this.#request.maxNewTokens) this.#fail(broken("it is longer than asked for"));
  }

  #begin(): void {
    this.#begun = true;
    if (this.#signal.aborted) {
      this.#abort();
      return;
    }
    this.#signal.addEventListener("abort", this.#abort);
    this.#submit().catch((error: unknown) => this.#fail(this.#lost ?? asSluiceError(error)));
  }

  readonly #abort = (): void => {
    this.#events.length = 0;
    this.#fail(abortError(this.#signal));
  };

  async #submit(): Promise<void> {
    for (let again = false; ; again = true) {
      const link = await this.#transport.link();
      if (this.#ended) return;
      if (link === undefined) return this.#goAlone();
      const number = link.attach(this);
      this.#place = { link, number };
      this.#submitting = true;
      const refusal = await this.#transport.submit(this.#request, { id: link.id, number }, this.#signal).finally(() => {
        this.#submitting = false;
      });
      if (this.#ended) return;
      if (refusal === undefined) {
        if (this.#lost !== undefined) throw this.#lost;
        return;
      }
      this.#place = undefined;
      link.detach(number);
      if (refusal.code !== "unknown_stream" || again) throw refusal;
      // The daemon that has this request is another one than the link was opened to, or has closed it a moment ago.
      this.#lost = undefined;
      link.close(refusal);
    }
  }

  #goAlone(): void {
    this.#signal.removeEventListener("abort", this.#abort);
    const waiting = this.#waiting;
    this.#waiting = undefined;
    this.#alone = this.#transport.alone(this.#request, this.#signal);
    waiting?.resolve(this.#alone.next());
  }

  /** Before its end: the daemon is told, unless it never heard of it. */
  #leave(): void {
    if (this.#ended) return;
    const asked = this.#place !== undefined;
    this.#end();
    if (asked) this.#transport.cancel(this.#request.id);
  }

  #end(): void {
    this.#ended = true;
    this.#signal.removeEventListener("abort", this.#abort);
    this.#place?.link.detach(this.#place.number);
    this.#place = undefined;
  }
}
