import type { IncomingHttpHeaders } from "node:http";
import type { Dispatcher } from "undici";
import type { HttpResponse } from "./http.ts";

/** Bytes that may wait for the reader before the socket is left alone. */
const highWaterBytes = 64 * 1024;

type Next = IteratorResult<Uint8Array, undefined>;

/**
 * One answer on its way through undici's dispatcher. `pool.request` would make a Node stream of each body and iterate that:
 * several microseconds a chunk, for an answer of tokens as for one of no bytes.
 */
export class UndiciReply implements Dispatcher.DispatchHandler, HttpResponse, AsyncIterator<Uint8Array, undefined> {
  /** Resolves with the head; rejects when there is none. */
  readonly begun: Promise<HttpResponse>;
  readonly body: AsyncIterable<Uint8Array> = { [Symbol.asyncIterator]: () => this };
  status = 0;
  #headers: IncomingHttpHeaders = {};
  #controller: Dispatcher.DispatchController | undefined;
  readonly #begin: PromiseWithResolvers<HttpResponse>;
  readonly #signal: AbortSignal;
  #queue: Uint8Array[] = [];
  #queuedBytes = 0;
  #waiting: PromiseWithResolvers<Next> | undefined;
  #ended = false;
  #failure: unknown;

  constructor(signal: AbortSignal) {
    this.#begin = Promise.withResolvers();
    this.begun = this.#begin.promise;
    this.#signal = signal;
    if (signal.aborted) this.#abort();
    else signal.addEventListener("abort", this.#abort);
  }

  header(name: string): string | undefined {
    const value = this.#headers[name];
    return Array.isArray(value) ? value[0] : value;
  }

  destroy(): void {
    this.#cut(new Error("nobody reads this answer any more"));
  }

  next(): Promise<Next> {
    if (this.#queue.length > 0) return Promise.resolve(this.#take());
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    if (this.#ended) return Promise.resolve({ done: true, value: undefined });
    this.#waiting ??= Promise.withResolvers();
    return this.#waiting.promise;
  }

  return(): Promise<Next> {
    this.destroy();
    return Promise.resolve({ done: true, value: undefined });
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    // It was given up while it waited for a connection.
    if (this.#ended) controller.abort(asError(this.#failure));
    else this.#controller = controller;
  }

  onResponseStart(_: Dispatcher.DispatchController, status: number, headers: IncomingHttpHeaders): void {
    if (status < 200 || this.#ended) return;
    this.status = status;
    this.#headers = headers;
    this.#begin.resolve(this);
  }

  onResponseData(controller: Dispatcher.DispatchController, chunk: Uint8Array): void {
    if (this.#ended) return;
    // One read of the socket may hold many chunks of HTTP; the reader gets them as one.
    if (this.#queue.length === 0 && this.#waiting !== undefined) queueMicrotask(this.#wake);
    this.#queue.push(chunk);
    this.#queuedBytes += chunk.byteLength;
    if (this.#queuedBytes > highWaterBytes) controller.pause();
  }

  onResponseEnd(): void {
    this.#end(undefined);
  }

  onResponseError(_: Dispatcher.DispatchController, error: Error): void {
    this.#end(error);
  }

  readonly #abort = (): void => this.#cut(this.#signal.reason);

  readonly #wake = (): void => {
    const waiting = this.#waiting;
    if (waiting === undefined || this.#queue.length === 0) return;
    this.#waiting = undefined;
    waiting.resolve(this.#take());
  };

  #take(): Next {
    const [first = new Uint8Array(0), ...more] = this.#queue;
    const value = more.length === 0 ? first : Buffer.concat(this.#queue, this.#queuedBytes);
    this.#queue = [];
    this.#queuedBytes = 0;
    if (this.#controller?.paused === true) this.#controller.resume();
    return { done: false, value };
  }

  /** What has come is not wanted any more either. */
  #cut(reason: unknown): void {
    if (this.#ended) return;
    this.#queue = [];
    this.#queuedBytes = 0;
    this.#end(reason);
    this.#controller?.abort(asError(reason));
  }

  #end(failure: unknown): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#failure = failure;
    this.#signal.removeEventListener("abort", this.#abort);
    if (failure !== undefined) this.#begin.reject(failure);
    this.#wake();
    const waiting = this.#waiting;
    this.#waiting = undefined;
    if (failure === undefined) waiting?.resolve({ done: true, value: undefined });
    else waiting?.reject(failure);
  }
}

const asError = (reason: unknown): Error =>
  reason instanceof Error ? reason : new Error("aborted", { cause: reason });
