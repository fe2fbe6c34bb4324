import { type Dispatcher, request } from "undici";
import { modelFault } from "./fault.ts";
import { isLoopback } from "./references.ts";

/** Part of a file as a server gives it. */
export interface SourceResponse {
  readonly status: 200 | 206 | 416;
  /** Where the body begins in the whole file; 0 for a 200. */
  readonly start: number;
  /** Size of the whole file, where it is known. */
  readonly total: number | undefined;
  /** What names this version of the file: its strong ETag, else its Last-Modified date. */
  readonly validator: string | undefined;
  /** sha256 that the hub states for a large file (Hugging Face's X-Linked-Etag), seen on any hop. */
  readonly statedSha256: string | undefined;
  readonly body: Dispatcher.ResponseData["body"];
}

export interface SourceRequest {
  readonly url: string;
  /** First byte wanted. */
  readonly offset: number;
  /** The version that the bytes before `offset` are of: another one is sent from its beginning (If-Range). */
  readonly validator: string | undefined;
  /** Sent to the first host only: a redirect to another one must not carry it on. */
  readonly token: string | undefined;
  readonly signal: AbortSignal;
}

/** A failure that another try may cure. */
export class TransientFault extends Error {
  readonly retryAfterMs: number | undefined;

  constructor(message: string, options: { retryAfterMs?: number | undefined; cause?: unknown } = {}) {
    super(message, { cause: options.cause });
    this.retryAfterMs = options.retryAfterMs;
  }
}

const MAX_REDIRECTS = 5;
const IDLE_TIMEOUT_MS = 30_000;
const REDIRECTS: ReadonlySet<number> = new Set([301, 302, 303, 307, 308]);

/**
 * Asks for a file from `offset` on. Follows up to five redirects (hubs keep files on other hosts), never from https to
 * plain http. Throws TransientFault for what may pass, SluiceError for what will not (404, access denied).
 */
export async function requestSource(asked: SourceRequest): Promise<SourceResponse> {
  let url = new URL(asked.url);
  let token = asked.token;
  let statedSha256: string | undefined;
  for (let hop = 0; hop <= MAX_REDIRECTS; hop++) {
    const response = await send(url, asked, token);
    const linked = header(response, "x-linked-etag")?.replaceAll('"', "");
    if (linked !== undefined && /^[0-9a-f]{64}$/.test(linked)) statedSha256 = linked;
    if (!REDIRECTS.has(response.statusCode)) return understand(response, url, statedSha256);
    await response.body.dump();
    const next = redirectTarget(url, header(response, "location"));
    if (next.host !== url.host) token = undefined;
    url = next;
  }
  throw modelFault("model_source_failed", `${asked.url}: more than ${MAX_REDIRECTS} redirects`);
}

async function send(url: URL, asked: SourceRequest, token: string | undefined): Promise<Dispatcher.ResponseData> {
  const headers: Record<string, string> = { "accept-encoding": "identity", "user-agent": "sluice" };
  if (token !== undefined) headers.authorization = `Bearer ${token}`;
  if (asked.offset > 0) {
    headers.range = `bytes=${asked.offset}-`;
    if (asked.validator !== undefined) headers["if-range"] = asked.validator;
  }
  try {
    return await request(url, {
      headers,
      signal: asked.signal,
      headersTimeout: IDLE_TIMEOUT_MS,
      bodyTimeout: IDLE_TIMEOUT_MS,
    });
  } catch (error) {
    if (asked.signal.aborted) throw asked.signal.reason;
    throw new TransientFault(`${url.origin} cannot be reached`, { cause: error });
  }
}

function redirectTarget(from: URL, location: string | undefined): URL {
  if (location === undefined || !URL.canParse(location, from)) {
    throw modelFault("model_source_failed", `${from.href} redirects to no address`);
  }
  const target = new URL(location, from);
  const allowed =
    target.protocol === "https:" || (target.protocol === "http:" && from.protocol === "http:" && isLoopback(target));
  if (!allowed)
    throw modelFault("model_source_failed", `${from.href} redirects to ${target.origin}, which is not https`);
  return target;
}

async function understand(
  response: Dispatcher.ResponseData,
  url: URL,
  statedSha256: string | undefined,
): Promise<SourceResponse> {
  const { statusCode: status, body } = response;
  if (status === 200 || status === 206) {
    const range = status === 206 ? contentRange(response) : { start: 0, total: length(response) };
    if (range === undefined) {
      body.destroy();
      throw modelFault("model_source_failed", `${url.href} answers a part of a file without saying which`);
    }
    return { status, ...range, validator: validatorOf(response), statedSha256, body };
  }
  await body.dump();
  if (status === 416)
    return { status, start: 0, total: contentRange(response)?.total, validator: undefined, statedSha256, body };
  if (status === 404 || status === 410) throw modelFault("model_not_found", `there is no ${url.href} (${status})`);
  if (status === 401 || status === 403)
    throw modelFault("model_access_denied", `${url.href} is not open to us (${status}); a gated model needs HF_TOKEN`);
  if (status === 408 || status === 429 || status >= 500) {
    throw new TransientFault(`${url.href} answers ${status}`, { retryAfterMs: retryAfter(response) });
  }
  throw modelFault("model_source_failed", `${url.href} answers ${status}`);
}

function contentRange(response: Dispatcher.ResponseData): { start: number; total: number | undefined } | undefined {
  const match = /^bytes (?:(\d+)-\d+|\*)\/(\d+|\*)$/.exec(header(response, "content-range") ?? "");
  if (match === null) return undefined;
  return { start: Number(match[1] ?? 0), total: match[2] === "*" ? undefined : Number(match[2]) };
}

function length(response: Dispatcher.ResponseData): number | undefined {
  const value = header(response, "content-length");
  return value !== undefined && /^\d+$/.test(value) ? Number(value) : undefined;
}

/** Weak ETags may stand for different bytes, so they name no version for a resumed download (RFC 9110, 13.1.5). */
function validatorOf(response: Dispatcher.ResponseData): string | undefined {
  const etag = header(response, "etag");
  return etag !== undefined && !etag.startsWith("W/") ? etag : header(response, "last-modified");
}

function retryAfter(response: Dispatcher.ResponseData): number | undefined {
  const value = header(response, "retry-after");
  return value !== undefined && /^\d+$/.test(value) ? Number(value) * 1000 : undefined;
}

function header(response: Dispatcher.ResponseData, name: string): string | undefined {
  const value = response.headers[name];
  return Array.isArray(value) ? value[0] : value;
}
