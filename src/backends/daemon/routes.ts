import type { IncomingMessage, RequestListener, ServerResponse } from "node:http";
import type { Registry } from "prom-client";
import { z } from "zod";
import type { Engine } from "../../engine/engine.ts";
import { invalidRequest, SluiceError, unavailable } from "../../errors.ts";
import { verifyArtifactMac } from "../../grammar/mac.ts";
import type { Generations } from "./generations.ts";
import { bearerMatches, parseJson, readBody, sendError, sendJson } from "./http.ts";
import type { KvFeed } from "./kv-feed.ts";
import { type GenerateBody, generateBody, type InfoBody, type loadBody, macHeader, ndjson } from "./protocol.ts";
import { refusalError } from "./refusals.ts";

export interface RouteContext {
  readonly engine: Engine;
  readonly info: InfoBody;
  readonly poolKey: string | undefined;
  readonly generations: Generations;
  readonly feed: KvFeed;
  readonly metrics: Registry;
  /** Undefined = ready and healthy; otherwise why not. */
  readonly unhealthy: () => string | undefined;
  readonly notReady: () => string | undefined;
  readonly drain: () => void;
  readonly draining: () => boolean;
  readonly bounds: { readonly bodyBytes: number; readonly grammarBytes: number };
}

/** The daemon's HTTP face. Everything under /v1 needs the pool key where there is one; probes and metrics do not. */
export function daemonRoutes(context: RouteContext): RequestListener {
  return (request, response) => {
    // A connection that breaks while a body is read or an answer written is the caller's to have; nothing to report.
    response.on("error", () => {});
    route(context, request, response).catch((error: unknown) => sendError(response, error));
  };
}

async function route(context: RouteContext, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const url = new URL(request.url ?? "/", "http://daemon");
  const [version, ...rest] = url.pathname.split("/").slice(1);
  const target = `${request.method} /${version}`;
  if (target === "GET /healthz") return probe(response, context.unhealthy());
  if (target === "GET /readyz") return sendLoad(context, response);
  if (target === "GET /metrics") return sendMetrics(context, response);
  if (version !== "v1") throw notFound();
  if (context.poolKey !== undefined && !bearerMatches(request.headers.authorization, context.poolKey)) {
    throw new SluiceError({
      status: 401,
      type: "authentication_error",
      code: "invalid_pool_key",
      message: "This daemon wants its pool key as a bearer token.",
    });
  }
  const [area, name] = rest;
  switch (`${request.method} ${area}${rest.length > 1 ? "/*" : ""}`) {
    case "GET info":
      return sendJson(response, 200, context.info);
    case "POST generate":
      return generate(context, request, response);
    case "POST streams":
      return openStream(context, response);
    case "DELETE generate/*":
      context.generations.cancelRequest(decodeURIComponent(name ?? ""));
      response.writeHead(204).end();
      return;
    case "PUT grammars/*":
      return putGrammar(context, request, response, name ?? "");
    case "GET kv/*":
      if (name !== "events") throw notFound();
      return kvEvents(context, url, response);
    case "POST drain":
      context.drain();
      return sendJson(response, 202, { draining: true });
    case "POST sleep":
    case "POST wake":
      throw new SluiceError({
        status: 501,
        type: "invalid_request_error",
        code: "not_supported",
        message: "This daemon's engine cannot sleep.",
      });
    default:
      throw notFound();
  }
}

function notFound(): SluiceError {
  return new SluiceError({
    status: 404,
    type: "not_found_error",
    code: "not_found",
    message: "The daemon protocol has no such endpoint.",
  });
}

async function generate(context: RouteContext, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { engine, generations } = context;
  const body = parseJson(await readBody(request, context.bounds.bodyBytes), generateBody);
  checkTokens(body, engine.info.vocabularySize);
  if (body.model !== undefined && body.model !== context.info.model) {
    throw invalidRequest("unknown_model", "This daemon serves another model.", "model");
  }
  if (generations.has(body.id)) throw conflict("duplicate_id", "A generation with this id is under way.", "id");
  if (generations.takeEarlyCancel(body.id))
    throw conflict("cancelled", "This generation was cancelled before it came.");
  const stream = streamOf(body, generations);
  if (body.grammar !== undefined && !engine.hasGrammar(body.grammar)) {
    throw refusalError("grammar_missing", "Upload the grammar and repeat.");
  }
  // The caller may have left while its body was read; nothing would ever cancel that generation.
  if (response.destroyed || response.socket?.destroyed !== false) return;
  const submitted = engine.submit({
    promptIds: Uint32Array.from(body.promptIds),
    generatedIds: Uint32Array.from(body.generatedIds),
    maxNewTokens: body.maxNewTokens,
    sampling: body.sampling,
    stopIds: body.stopIds,
    grammar: body.grammar,
    logprobs: body.logprobs,
    salt: body.salt,
    priority: body.priority,
    deadlineMs: body.deadlineMs,
  });
  if ("refused" in submitted) throw refusalError(submitted.refused, submitted.message);
  if (stream !== undefined) {
    generations.addToStream(body.id, submitted.id, stream.outlet, stream.number);
    response.writeHead(204).end();
    return;
  }
  generations.addAnswer(body.id, submitted.id, response);
  startStream(response);
}

function streamOf({ stream }: GenerateBody, generations: Generations) {
  if (stream === undefined) return undefined;
  const outlet = generations.stream(stream.id);
  if (outlet === undefined)
    throw conflict("unknown_stream", "No such stream is open; open one and repeat.", "stream.id");
  const { number } = stream;
  if (outlet.carried.has(number)) throw conflict("duplicate_id", "This number is in use.", "stream.number");
  return { outlet, number };
}

function conflict(code: string, message: string, param?: string): SluiceError {
  return new SluiceError({ status: 409, type: "invalid_request_error", code, message, param });
}

function openStream(context: RouteContext, response: ServerResponse): void {
  if (context.draining()) throw refusalError("draining", "The daemon is shutting down.");
  if (context.generations.streamsFull)
    throw unavailable("too_many_streams", "Too many streams are open.", { retryAfterMs: 5_000 });
  // Until the connection closes: the framing of chunks would cost both sides as much again as a short line.
  response.useChunkedEncodingByDefault = false;
  startStream(response);
  context.generations.openStream(response);
}

/** The engine indexes tables by token id; one beyond the vocabulary must not reach it. */
function checkTokens(body: GenerateBody, vocabularySize: number): void {
  const check = (path: string, ids: readonly number[]) => {
    const fault = ids.findIndex((id) => id >= vocabularySize);
    if (fault >= 0) {
      throw invalidRequest("invalid_value", `The vocabulary has ${vocabularySize} tokens.`, `${path}[${fault}]`);
    }
  };
  check("promptIds", body.promptIds);
  check("generatedIds", body.generatedIds);
  check("stopIds", body.stopIds);
  check(
    "sampling.logitBias",
    body.sampling.logitBias.map(([token]) => token),
  );
  body.sampling.bannedSequences.forEach((ids, index) => {
    check(`sampling.bannedSequences[${index}]`, ids);
  });
}

function startStream(response: ServerResponse): void {
  response.writeHead(200, { "content-type": ndjson, "cache-control": "no-store" });
  response.flushHeaders();
  // Tokens are small and urgent; waiting to fill a packet would add up to 40 ms to each.
  response.socket?.setNoDelay(true);
}

async function putGrammar(
  context: RouteContext,
  request: IncomingMessage,
  response: ServerResponse,
  hash: string,
): Promise<void> {
  if (!/^[0-9a-f]{64}$/.test(hash)) {
    throw invalidRequest("invalid_value", "A grammar is named by 64 lower-case hex digits.", "hash");
  }
  const bytes = await readBody(request, context.bounds.grammarBytes);
  const mac = request.headers[macHeader];
  if (typeof mac !== "string" || !verifyArtifactMac(context.poolKey ?? "", hash, bytes, mac)) {
    throw new SluiceError({
      status: 403,
      type: "permission_error",
      code: "invalid_mac",
      message: `The artifact's ${macHeader} does not match.`,
    });
  }
  if (!context.engine.hasGrammar(hash)) {
    try {
      await context.engine.loadGrammar(hash, bytes);
    } catch (cause) {
      throw new SluiceError({
        status: 422,
        type: "invalid_request_error",
        code: "invalid_grammar",
        message: "The engine cannot read this artifact.",
        cause,
      });
    }
  }
  response.writeHead(204).end();
}

const kvQuery = z.object({ after: z.coerce.number().int().min(0).optional(), instance: z.string().optional() });

function kvEvents(context: RouteContext, url: URL, response: ServerResponse): void {
  const query = kvQuery.safeParse(Object.fromEntries(url.searchParams));
  if (!query.success) throw invalidRequest("invalid_value", "Expected a sequence number.", "after");
  if (context.feed.full)
    throw unavailable("too_many_subscribers", "Too many KV event feeds are open.", { retryAfterMs: 5_000 });
  const { after, instance } = query.data;
  startStream(response);
  context.feed.subscribe(response, instance === context.info.instance ? after : undefined);
}

function probe(response: ServerResponse, fault: string | undefined): void {
  sendJson(
    response,
    fault === undefined ? 200 : 503,
    fault === undefined ? { ok: true } : { ok: false, reason: fault },
  );
}

function sendLoad(context: RouteContext, response: ServerResponse): void {
  const { runningRows, queuedRows, pendingPrefillTokens, blocks } = context.engine.stats();
  const reason = context.notReady();
  const body: z.input<typeof loadBody> = {
    ready: reason === undefined,
    ...(reason === undefined ? {} : { reason }),
    runningRows,
    queuedRows,
    pendingPrefillTokens,
    // Cached blocks are free for whoever needs them.
    freeKvTokens: (blocks.free + blocks.cached) * context.engine.info.blockSize,
  };
  sendJson(response, body.ready ? 200 : 503, body);
}

async function sendMetrics(context: RouteContext, response: ServerResponse): Promise<void> {
  const text = await context.metrics.metrics();
  response.writeHead(200, { "content-type": context.metrics.contentType }).end(text);
}
