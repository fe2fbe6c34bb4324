import { type Clock, systemClock } from "../clock.ts";
import type { OpenAICapabilities } from "../config/schema.ts";
import { asSluiceError, SluiceError } from "../errors.ts";
import type { Backend, BackendCapabilities, BackendInfo, GenerationEvent, GenerationRequest } from "./backend.ts";
import type { HttpOrigin, HttpResponse } from "./http.ts";
import { broken } from "./ndjson.ts";
import { AnswerReader } from "./openai/answer.ts";
import { decodedBody, parseJson, smallBody } from "./openai/body.ts";
import { type FaultContext, httpFault, inBandFault, readFault, retryAfterMs, textOf } from "./openai/fault.ts";
import { list, record } from "./openai/json.ts";
import { type Lowered, lower, objectionTo } from "./openai/lower.ts";
import { SseParser } from "./openai/sse.ts";

export interface OpenAIBackendOptions {
  /** `pool/endpoint`. */
  readonly id: string;
  readonly http: HttpOrigin;
  /** The path of the endpoint's URL without a trailing slash, `/v1` as a rule; the origin is `http`'s. */
  readonly basePath: string;
  /** Host and port of the endpoint: kept out of what callers read. */
  readonly host: string;
  /** Sent as bearer. */
  readonly key?: string | undefined;
  /** Undefined = the name that callers use. */
  readonly upstreamModel?: string | undefined;
  readonly capabilities: OpenAICapabilities;
  /** The path below `basePath` that tells whether the endpoint is there, or `none`. */
  readonly health?: string | undefined;
  readonly clock?: Clock;
}

const maxEventLength = 1024 * 1024;
const maxErrorBytes = 64 * 1024;
const maxModelsBytes = 1024 * 1024;
/** A chunk is some 300 bytes, with twenty log probabilities some 3,000; an answer far beyond is no answer. */
const answerBytes = (maxNewTokens: number): number => 1024 * 1024 + 8 * 1024 * maxNewTokens;
/** How long usage, the end of a finished answer or the rest of an error may take. */
const graceMs = 1_000;
/** Hosted endpoints count such requests against the key; the breaker sees failures sooner anyway. */
const healthForMs = 10_000;

/**
 * Any OpenAI-compatible endpoint as a backend: text in, text out. What it is sent and how its failures are told is in
 * openai/README.md. Errors are SluiceErrors that hold neither the key nor the address.
 */
export function createOpenAIBackend(options: OpenAIBackendOptions): Backend {
  const { http, basePath, key, capabilities, clock = systemClock, health: healthPath = "/models" } = options;
  const secrets = [...(key === undefined || key === "" ? [] : [key]), options.host];
  const headers: Record<string, string> = {
    // A compressed stream is held back until a block is full, and costs CPU on every token.
    "accept-encoding": "identity",
    ...(key !== undefined && key !== "" && { authorization: `Bearer ${key}` }),
  };
  let healthyUntil = Number.NEGATIVE_INFINITY;

  const named = (request: GenerationRequest): GenerationRequest => ({
    ...request,
    model: options.upstreamModel ?? request.model,
  });

  async function* generate(request: GenerationRequest, signal: AbortSignal): AsyncGenerator<GenerationEvent> {
    const lowered = lower(named(request), capabilities);
    const fault = faultContext(request, lowered);
    let response: HttpResponse | undefined;
    let rest: AsyncIterator<Uint8Array> | undefined;
    try {
      response = await http.request({
        method: "POST",
        path: basePath + lowered.path,
        headers: {
          ...headers,
          accept: "text/event-stream",
          "content-type": "application/json",
          ...(request.traceparent !== undefined && { traceparent: request.traceparent }),
        },
        body: JSON.stringify(lowered.body),
        signal,
      });
      if (response.status !== 200) throw await refused(response, fault);
      if (!/^text\/event-stream\b/i.test(response.header("content-type") ?? "")) throw await noStream(response, fault);
      const body = decodedBody(response)[Symbol.asyncIterator]();
      const reader = new AnswerReader({
        logprobs: lowered.logprobs,
        promptTokens: request.promptIds.length + request.generatedIds.length,
        fault,
      });
      yield* readAnswer(body, reader, answerBytes(request.maxNewTokens));
      const finish = reader.finish();
      if (reader.complete) rest = body;
      yield finish;
    } catch (error) {
      rest = undefined;
      throw signal.aborted ? abortError(signal) : asSluiceError(error);
    } finally {
      if (response !== undefined) {
        if (rest !== undefined && !signal.aborted) void readRest(rest, response);
        else response.destroy();
      }
    }
  }

  /** Yields text until the answer is complete, or finished and silent; returns also where the body ends too soon. */
  async function* readAnswer(
    body: AsyncIterator<Uint8Array>,
    reader: AnswerReader,
    maxBytes: number,
  ): AsyncGenerator<GenerationEvent> {
    const parser = new SseParser(maxEventLength);
    let size = 0;
    while (!reader.complete) {
      const next = reader.finished ? await withinGrace(body.next()) : await nextOf(body);
      if (next === undefined || next.done === true) return;
      size += next.value.byteLength;
      if (size > maxBytes) throw broken("it is far longer than asked for");
      try {
        for (const event of parser.push(next.value)) reader.take(event);
      } catch (error) {
        // Garbage behind a finished answer takes nothing from it; an error that is told does.
        if (!reader.finished || !isGarbage(error)) throw error;
        const last = reader.drain();
        if (last !== undefined) yield last;
        return;
      }
      const text = reader.drain();
      if (text !== undefined) yield text;
    }
  }

  /** Undefined when nothing came in time, or the connection broke: the answer was whole before. */
  async function withinGrace<T>(work: Promise<T>): Promise<T | undefined> {
    const done = new AbortController();
    const late = clock.sleep(graceMs, done.signal).catch(() => {});
    try {
      return (await Promise.race([work.catch(() => undefined), late])) ?? undefined;
    } finally {
      done.abort();
    }
  }

  async function refused(response: HttpResponse, context: FaultContext): Promise<SluiceError> {
    const text = await withinGrace(smallBody(response, maxErrorBytes));
    const hint = retryAfterMs((name) => response.header(name));
    return httpFault(response.status, readFault(parseJson(text)), hint, context);
  }

  /** 200 without a stream: an error told the wrong way, or an endpoint that does not stream. */
  async function noStream(response: HttpResponse, context: FaultContext): Promise<SluiceError> {
    const fault = readFault(parseJson(await withinGrace(smallBody(response, maxErrorBytes))));
    if (fault !== undefined) return inBandFault(fault, context);
    return new SluiceError({
      status: 502,
      type: "server_error",
      code: "backend_incompatible",
      message: "A backend did not answer with a stream.",
      retryable: true,
    });
  }

  function faultContext(request: GenerationRequest, lowered: Lowered): FaultContext {
    const { messages, prompt, tools } = request.text.body;
    return {
      secrets,
      callerText: () => textOf([messages, prompt, tools, request.text.generated]),
      continuation: lowered.continuation,
    };
  }

  async function get(path: string, signal: AbortSignal): Promise<HttpResponse> {
    return http.request({
      method: "GET",
      path: basePath + path,
      headers: { ...headers, accept: "application/json" },
      signal,
    });
  }

  return {
    id: options.id,
    capabilities: capabilitiesOf(capabilities),
    generate,
    objection: (request) => objectionTo(request, capabilities),
    async info(signal): Promise<BackendInfo> {
      const model = options.upstreamModel ?? "";
      const told =
        capabilities.contextLength ?? (healthPath === "/models" ? await contextOf(model, signal) : undefined);
      // Unknown: the endpoint itself refuses what is too long, with `context_length_exceeded`.
      const contextLength = told ?? Number.MAX_SAFE_INTEGER;
      return {
        model,
        vocabularyHash: "",
        tokenizerFingerprint: "",
        blockSize: 16,
        contextLength,
        kvTokens: contextLength,
        maxRows: Number.MAX_SAFE_INTEGER,
      };
    },
    async health(signal) {
      if (healthPath === "none" || clock.now() < healthyUntil) return { ready: true };
      const response = await get(healthPath, signal);
      response.destroy();
      const reason = unhealthy(response.status);
      if (reason !== undefined) return { ready: false, reason };
      healthyUntil = clock.now() + healthForMs;
      return { ready: true };
    },
    async load() {
      return { runningRows: 0, queuedRows: 0, pendingPrefillTokens: 0, freeKvTokens: 0 };
    },
    close: () => http.close(),
  };

  /** Engines tell the context in their list of models, each under its own name: vLLM and SGLang, OpenRouter, LM Studio. */
  async function contextOf(model: string, signal: AbortSignal): Promise<number | undefined> {
    const response = await get("/models", signal);
    try {
      if (response.status !== 200) return undefined;
      const body = record(parseJson(await smallBody(response, maxModelsBytes)));
      const entry = (list(body?.data) ?? []).map(record).find((candidate) => candidate?.id === model);
      const length = entry?.max_model_len ?? entry?.context_length ?? entry?.max_context_length;
      return typeof length === "number" && Number.isSafeInteger(length) && length > 0 ? length : undefined;
    } finally {
      response.destroy();
    }
  }
}

function capabilitiesOf(declared: OpenAICapabilities): BackendCapabilities {
  const free = declared.extensions.includes("structured_outputs");
  return {
    tokenIds: false,
    structuredOutput: [
      ...(declared.jsonSchema ? (["json_schema"] as const) : []),
      ...(declared.jsonObject ? (["json_object"] as const) : []),
      ...(free ? (["regex", "ebnf", "structural_tag"] as const) : []),
    ],
    kvEvents: false,
    prefillDecodeSplit: false,
    sleep: false,
    priority: false,
    cacheSalt: false,
    abort: true,
    assistantPrefill: declared.assistantPrefill !== false,
    reportsLoad: false,
  };
}

/** An endpoint that answers at all is there: many know no such route, and a rate limit passes. */
function unhealthy(status: number): string | undefined {
  if (status === 401 || status === 403) return "upstream_auth";
  if (status >= 300 && status < 400) return "upstream_redirected";
  return status >= 500 ? `upstream_${status}` : undefined;
}

function isGarbage(error: unknown): boolean {
  return error instanceof SluiceError && error.cause instanceof SyntaxError;
}

async function nextOf(body: AsyncIterator<Uint8Array>): Promise<IteratorResult<Uint8Array>> {
  try {
    return await body.next();
  } catch (error) {
    throw broken("the connection broke", error);
  }
}

/** What follows the last chunk, normally nothing, so that the connection can be used again. */
async function readRest(body: AsyncIterator<Uint8Array>, response: HttpResponse): Promise<void> {
  const late = AbortSignal.timeout(graceMs);
  const destroy = () => response.destroy();
  late.addEventListener("abort", destroy);
  try {
    // An upstream that goes on behind its end is not worth the connection.
    for (let left = 16; left > 0; left--) if ((await body.next()).done === true) return;
    destroy();
  } catch {
    destroy();
  } finally {
    late.removeEventListener("abort", destroy);
  }
}

function abortError(signal: AbortSignal): SluiceError {
  const reason: unknown = signal.reason;
  if (reason instanceof SluiceError) return reason;
  return new SluiceError({
    status: 499,
    type: "invalid_request_error",
    code: "cancelled",
    message: "The request was cancelled.",
    cause: reason,
  });
}
