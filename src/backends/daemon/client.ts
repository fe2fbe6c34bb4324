import { asSluiceError, SluiceError, unavailable } from "../../errors.ts";
import type { GrammarArtifact } from "../../grammar/grammar.ts";
import { artifactMac } from "../../grammar/mac.ts";
import type { Backend, BackendInfo, BackendLoad, GenerationRequest, KvFeedEvent, KvFeedPosition } from "../backend.ts";
import type { HttpOrigin, HttpResponse } from "../http.ts";
import { broken, readNdjson } from "../ndjson.ts";
import { answerAlone, unbroken } from "./client-answer.ts";
import { daemonError, readBounded } from "./client-errors.ts";
import { LinkedGeneration, type LinkTransport } from "./client-generation.ts";
import { Link } from "./client-link.ts";
import { abortError, requestBody } from "./client-request.ts";
import {
  type GenerateBody,
  heartbeatEveryMs,
  infoBody,
  kvEvent,
  loadBody,
  macHeader,
  protocolVersion,
} from "./protocol.ts";

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
  /** Default `shared`: all generations on one stream (protocol.ts). `none` = an answer each, where connections cannot outlive a request. */
  readonly link?: "shared" | "none";
  /** A link without a sign of life for so long is dead, whatever its socket says. Default: eight heartbeats. */
  readonly silenceMs?: number;
}

/** How long the news of a cancel may take; it only cleans up. */
const cleanUpMs = 2_000;
const openLinkMs = 10_000;

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

  /** Resolves with the answer, or with the refusal. A grammar that the daemon lacks is uploaded once. */
  async function post(
    request: GenerationRequest,
    stream: GenerateBody["stream"],
    signal: AbortSignal,
  ): Promise<HttpResponse | SluiceError> {
    const body = requestBody(request, stream);
    for (let uploaded = false; ; uploaded = true) {
      const response = await http.request({
        method: "POST",
        path: `${basePath}/v1/generate`,
        headers: { ...authorization, "content-type": "application/json" },
        body,
        signal,
        ...(options.headersTimeoutMs === undefined ? {} : { headersTimeoutMs: options.headersTimeoutMs }),
      });
      if (response.status === 200 || response.status === 204) return response;
      const error = await daemonError(response);
      if (error.code !== "grammar_missing" || request.grammar === undefined || uploaded) return error;
      await orAborted(upload(request.grammar.artifact), signal);
    }
  }

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

  const alone = (request: GenerationRequest, signal: AbortSignal) =>
    answerAlone({
      request,
      signal,
      maxLineBytes,
      open: async () => {
        const answer = await post(request, undefined, signal);
        if (answer instanceof SluiceError) throw answer;
        return answer;
      },
      cancel: () => cancel(request.id),
    });

  /** One for all generations; opened with the first, and anew with the first after a break. */
  let link: Promise<Link | undefined> | undefined;
  let withoutLinks = false;
  function openLink(): Promise<Link | undefined> {
    let mine: Promise<Link | undefined> | undefined;
    const forget = () => {
      if (link === mine) link = undefined;
    };
    mine = (async () => {
      const response = await http.request({
        method: "POST",
        path: `${basePath}/v1/streams`,
        headers: authorization,
        // Whoever asked first may leave while others wait for it; `close` ends it too.
        signal: new AbortController().signal,
        headersTimeoutMs: openLinkMs,
        bodyTimeoutMs: options.silenceMs ?? 8 * heartbeatEveryMs,
      });
      const opened = await Link.open(response, maxLineBytes, forget);
      withoutLinks = opened === undefined;
      return opened;
    })();
    mine.catch(forget);
    return mine;
  }

  const transport: LinkTransport = {
    async link() {
      link ??= openLink();
      try {
        return await link;
      } catch (error) {
        // Its generations can still come one by one.
        if (error instanceof SluiceError && error.code === "too_many_streams") return undefined;
        throw asSluiceError(error);
      }
    },
    async submit(request, stream, signal) {
      const answer = await post(request, stream, signal);
      if (answer instanceof SluiceError) return answer;
      await readBounded(answer);
      return undefined;
    },
    cancel,
    alone,
  };

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
      // Asked when a backend comes up, and then it may be a newer daemon than the last.
      if (withoutLinks) link = undefined;
      return parsed.data;
    },
    generate(request, signal, sink) {
      return options.link === "none" ? alone(request, signal) : new LinkedGeneration(transport, request, signal, sink);
    },
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

function orAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(abortError(signal));
    if (signal.aborted) onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}
