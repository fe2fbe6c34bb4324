import { asSluiceError, SluiceError, unavailable } from "../../errors.ts";
import { artifactMac } from "../../grammar/mac.ts";
import type { GrammarArtifact } from "../../grammar/grammar.ts";
import type {
  Backend,
  BackendInfo,
  BackendLoad,
  GenerationEvent,
  GenerationRequest,
  KvFeedEvent,
  KvFeedPosition,
} from "../backend.ts";
import type { HttpOrigin, HttpResponse } from "../http.ts";
import { broken, readNdjson } from "../ndjson.ts";
import {
  generationEvent,
  type GenerateBody,
  infoBody,
  kvEvent,
  loadBody,
  macHeader,
  protocolVersion,
} from "./protocol.ts";
import { daemonError, readBounded } from "./client-errors.ts";

export interface DaemonBackendOptions {
  /** `pool/endpoint`. */
  readonly id: string;
  /** The path of the endpoint's URL without a trailing slash; the origin is `http`'s. */
  readonly basePath?: string;
  readonly http: HttpOrigin;
  readonly poolKey?: string | undefined;
  /** Bounds one line of an answer or a feed. */
  readonly maxLineBytes?: number;
  readonly headersTimeoutMs?: number;
}

/** How long the news of an abort and the rest of a finished answer may take; both only clean up. */
const cleanUpMs = 2_000;

export type DaemonBackend = Backend & Required<Pick<Backend, "kvEvents">>;

/** The gateway's side of the daemon protocol. */
export function createDaemonBackend(options: DaemonBackendOptions): DaemonBackend {
  const { http, poolKey = "", basePath = "", maxLineBytes = 4 * 1024 * 1024 } = options;
  const authorization: Record<string, string> = poolKey === "" ? {} : { authorization: `Bearer ${poolKey}` };
  const uploads = new Map<string, Promise<void>>();

  async function get(path: string, signal: AbortSignal): Promise<HttpResponse> {
    return http.request({ method: "GET", path: basePath + path, headers: authorization, signal });
  }

  async function getJson(path: string, signal: AbortSignal, accept: readonly number[] = [200]): Promise<unknown> {
    const response = await get(path, signal);
    if (!accept.includes(response.status)) throw await daemonError(response);
    return JSON.parse(await readBounded(response));
  }

  /** Single-flight: a hundred answers that miss the same grammar upload it once. An upload outlives the caller that began it. */
  function upload(artifact: GrammarArtifact): Promise<void> {
    const running = uploads.get(artifact.hash);
    if (running !== undefined) return running;
    const upload = (async () => {
      const response = await http.request({
        method: "PUT",
        path: `${basePath}/v1/grammars/${artifact.hash}`,
        headers: {
          ...authorization,
          "content-type": "application/octet-stream",
          [macHeader]: artifactMac(poolKey, artifact.hash, artifact.bytes),
        },
        body: artifact.bytes,
        signal: AbortSignal.timeout(30_000),
      });
      if (response.status !== 204) throw await daemonError(response);
      await readBounded(response);
    })().finally(() => uploads.delete(artifact.hash));
    uploads.set(artifact.hash, upload);
    return upload;
  }

  async function open(request: GenerationRequest, signal: AbortSignal): Promise<HttpResponse> {
    const body = requestBody(request);
    for (let uploaded = false; ; uploaded = true) {
      const response = await http.request({
        method: "POST",
        path: `${basePath}/v1/generate`,
        headers: { ...authorization, "content-type": "application/json" },
        body,
        signal,
        ...(options.headersTimeoutMs === undefined ? {} : { headersTimeoutMs: options.headersTimeoutMs }),
      });
      if (response.status === 200) return response;
      const error = await daemonError(response);
      if (error.code !== "grammar_missing" || request.grammar === undefined || uploaded) throw error;
      await orAborted(upload(request.grammar.artifact), signal);
    }
  }

  /** The closed socket already cancels; this reaches the daemon also through a proxy that keeps its own connection open. */
  function cancel(id: string): void {
    void http
      .request({
        method: "DELETE",
        path: `${basePath}/v1/generate/${encodeURIComponent(id)}`,
        headers: authorization,
        signal: AbortSignal.timeout(cleanUpMs),
      })
      .then((response) => readBounded(response))
      .catch(() => {});
  }

  async function* generate(request: GenerationRequest, signal: AbortSignal): AsyncGenerator<GenerationEvent> {
    let response: HttpResponse | undefined;
    let ended = false;
    try {
      response = await open(request, signal);
      let produced = 0;
      for await (const lines of keepOpen(readNdjson(unbroken(response.body, signal), maxLineBytes))) {
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
      if (!ended && (response !== undefined || signal.aborted)) cancel(request.id);
    }
  }

  return {
    id: options.id,
    capabilities: {
      tokenIds: true,
      structuredOutput: ["json_schema", "json_object", "regex", "ebnf", "structural_tag"],
      kvEvents: true,
      prefillDecodeSplit: false,
      sleep: false,
      priority: true,
      cacheSalt: true,
      abort: true,
      assistantPrefill: true,
    },
    async info(signal): Promise<BackendInfo> {
      const parsed = infoBody.safeParse(await getJson("/v1/info", signal));
      if (!parsed.success || parsed.data.protocol !== protocolVersion) {
        throw unavailable(
          "backend_incompatible",
          `The backend does not speak version ${protocolVersion} of the daemon protocol.`,
        );
      }
      return parsed.data;
    },
    generate,
    async health(signal) {
      const { ready, reason } = await readLoad(signal);
      return ready ? { ready } : { ready, reason: reason ?? "not ready" };
    },
    async load(signal): Promise<BackendLoad> {
      return readLoad(signal);
    },
    async *kvEvents(from: KvFeedPosition | undefined, signal: AbortSignal): AsyncGenerator<KvFeedEvent> {
      const query = from === undefined ? "" : `?after=${from.seq}&instance=${encodeURIComponent(from.instance)}`;
      const response = await get(`/v1/kv/events${query}`, signal);
      if (response.status !== 200) throw await daemonError(response);
      try {
        for await (const lines of readNdjson(unbroken(response.body, signal), maxLineBytes)) {
          for (const line of lines) {
            const parsed = kvEvent.safeParse(line);
            if (!parsed.success) throw broken("a KV event is malformed", parsed.error);
            yield parsed.data;
          }
        }
      } finally {
        response.destroy();
      }
    },
    close: () => http.close(),
  };

  async function readLoad(signal: AbortSignal) {
    const parsed = loadBody.safeParse(await getJson("/readyz", signal, [200, 503]));
    if (!parsed.success) throw unavailable("backend_incompatible", "The backend's /readyz is not a daemon's.");
    return parsed.data;
  }
}

/** Token arrays dominate the body; joining them is several times cheaper than stringifying a copied array. */
function requestBody(request: GenerationRequest): string {
  const rest: Omit<GenerateBody, "promptIds" | "generatedIds"> = {
    id: request.id,
    maxNewTokens: request.maxNewTokens,
    sampling: {
      ...request.sampling,
      logitBias: request.sampling.logitBias.map(([token, bias]) => [token, bias]),
      bannedSequences: [...request.sampling.bannedSequences],
    },
    stopIds: [...request.stopIds],
    salt: request.salt,
    priority: request.priority,
    deadlineMs: request.deadlineMs,
    ...(request.grammar === undefined ? {} : { grammar: request.grammar.artifact.hash }),
    ...(request.logprobs === undefined ? {} : { logprobs: request.logprobs }),
    ...(request.traceparent === undefined ? {} : { traceparent: request.traceparent }),
  };
  const ids = `"promptIds":[${request.promptIds.join(",")}],"generatedIds":[${request.generatedIds.join(",")}]`;
  return `{${ids},${JSON.stringify(rest).slice(1)}`;
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

/** A socket that breaks mid-answer shows as an error of the HTTP client; ours says what it means for the caller. */
async function* unbroken(body: AsyncIterable<Uint8Array>, signal: AbortSignal): AsyncGenerator<Uint8Array> {
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

function orAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(abortError(signal));
    if (signal.aborted) onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}
