import type { Context } from "hono";
import { systemClock } from "../../clock.ts";
import { invalidRequest } from "../../errors.ts";
import { bodyTooLarge, byteCount, callerLeft, type EventSink, type Exchange, type Platform } from "./platform.ts";

/** The Workers side of an exchange: web standards only. */
export function createWorkersPlatform(): Platform {
  return {
    name: "workers",
    clock: { ...systemClock, wall: () => Date.now() },
    async sha256(text) {
      const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text)));
      return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    },
    exchange: (context) => new WorkersExchange(context),
  };
}

class WorkersExchange implements Exchange {
  readonly #context: Context;
  readonly #left = new AbortController();

  constructor(context: Context) {
    this.#context = context;
    const { signal } = context.req.raw;
    const leave = (): void => this.#left.abort(callerLeft());
    if (signal.aborted) leave();
    else signal.addEventListener("abort", leave, { once: true });
  }

  get signal(): AbortSignal {
    return this.#left.signal;
  }

  header(name: string): string | undefined {
    return this.#context.req.header(name);
  }

  get declaredBytes(): number | undefined {
    return byteCount(this.header("content-length"));
  }

  async readBody(limitBytes: number): Promise<string> {
    const { body } = this.#context.req.raw;
    if ((this.declaredBytes ?? 0) > limitBytes) throw bodyTooLarge(limitBytes);
    const decoder = new TextDecoder("utf-8", { fatal: true });
    let text = "";
    let bytes = 0;
    const reader = body?.getReader();
    try {
      for (;;) {
        const part = await reader?.read();
        if (part === undefined || part.done) return text + decoder.decode();
        bytes += part.value.byteLength;
        if (bytes > limitBytes) throw bodyTooLarge(limitBytes);
        text += decoder.decode(part.value, { stream: true });
      }
    } catch (error) {
      if (error instanceof TypeError) throw invalidRequest("invalid_json", "The body is not valid UTF-8.");
      throw error;
    } finally {
      await reader?.cancel().catch(() => {});
    }
  }

  background(work: Promise<void>): void {
    this.#context.executionCtx.waitUntil(work);
  }

  send(status: number, headers: Readonly<Record<string, string>>, body: string): Response {
    return new Response(body, { status, headers });
  }

  open(headers: Readonly<Record<string, string>>): { readonly sink: EventSink; readonly response: Response } {
    const sink = new WebSink(() => this.#left.abort(callerLeft()));
    return { sink, response: new Response(sink.readable, { status: 200, headers }) };
  }
}

class WebSink implements EventSink {
  readonly readable: ReadableStream<Uint8Array>;
  readonly #encoder = new TextEncoder();
  #controller: ReadableStreamDefaultController<Uint8Array> | undefined;
  #open = true;

  constructor(onCancel: () => void) {
    this.readable = new ReadableStream<Uint8Array>(
      {
        start: (controller) => {
          this.#controller = controller;
        },
        cancel: () => {
          this.#open = false;
          onCancel();
        },
      },
      { highWaterMark: 0, size: (chunk) => chunk?.byteLength ?? 0 },
    );
  }

  get pending(): number {
    return -(this.#controller?.desiredSize ?? 0);
  }

  write(text: string): void {
    if (this.#open) this.#controller?.enqueue(this.#encoder.encode(text));
  }

  end(text: string): void {
    if (!this.#open) return;
    if (text !== "") this.write(text);
    this.#open = false;
    this.#controller?.close();
  }

  destroy(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#controller?.error(callerLeft());
  }
}
