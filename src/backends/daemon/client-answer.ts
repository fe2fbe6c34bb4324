import { asSluiceError } from "../../errors.ts";
import type { GenerationEvent, GenerationRequest } from "../backend.ts";
import type { HttpResponse } from "../http.ts";
import { broken, readNdjson } from "../ndjson.ts";
import { abortError } from "./client-request.ts";
import { generationEvent } from "./protocol.ts";

/** How long the rest of a finished answer may take; it only cleans up. */
const cleanUpMs = 2_000;

export interface AnswerOptions {
  readonly request: GenerationRequest;
  readonly signal: AbortSignal;
  readonly maxLineBytes: number;
  /** Resolves when the daemon has taken the request on. */
  readonly open: () => Promise<HttpResponse>;
  readonly cancel: () => void;
}

/** A generation whose events are the body of its own answer. */
export async function* answerAlone(options: AnswerOptions): AsyncGenerator<GenerationEvent, undefined> {
  const { request, signal } = options;
  let response: HttpResponse | undefined;
  let ended = false;
  try {
    response = await options.open();
    let produced = 0;
    for await (const lines of keepOpen(readNdjson(unbroken(response.body, signal), options.maxLineBytes))) {
      for (const line of lines) {
        const parsed = generationEvent.safeParse(line);
        if (!parsed.success) throw broken("an event is malformed", parsed.error);
        const event = parsed.data;
        if (event.type === "tokens") produced += event.ids.length;
        // Admission holds the caller to this; a backend that runs past it would be charged to nobody.
        if (produced > request.maxNewTokens) throw broken("it is longer than asked for");
        ended = event.type === "finish" || event.type === "error";
        yield event;
        if (ended) return;
      }
    }
    throw broken("it ended without a finish");
  } catch (error) {
    throw signal.aborted ? abortError(signal) : asSluiceError(error);
  } finally {
    if (ended && response !== undefined && !signal.aborted) void readRest(response);
    else response?.destroy();
    // The closed socket already cancels; this reaches the daemon also through a proxy that keeps its own connection open.
    if (!ended && (response !== undefined || signal.aborted)) options.cancel();
  }
}

/** A socket that breaks mid-answer shows as an error of the HTTP client; ours says what it means for the caller. */
export async function* unbroken(body: AsyncIterable<Uint8Array>, signal: AbortSignal): AsyncGenerator<Uint8Array> {
  try {
    yield* keepOpen(body);
  } catch (error) {
    throw signal.aborted ? abortError(signal) : broken("the connection broke", error);
  }
}

/** Iterates without closing the source when the loop is left: a finished answer's connection is kept for the next one. */
async function* keepOpen<T>(source: AsyncIterable<T>): AsyncGenerator<T> {
  const iterator = source[Symbol.asyncIterator]();
  for (let next = await iterator.next(); next.done !== true; next = await iterator.next()) yield next.value;
}

/** Reads what follows the last event, normally nothing but the end, so that the connection can be used again. */
async function readRest(response: HttpResponse): Promise<void> {
  const late = AbortSignal.timeout(cleanUpMs);
  const destroy = () => response.destroy();
  late.addEventListener("abort", destroy);
  try {
    for await (const _ of response.body) {
      response.destroy();
    }
  } catch {
    response.destroy();
  } finally {
    late.removeEventListener("abort", destroy);
  }
}
