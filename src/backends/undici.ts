import { lookup as systemLookup } from "node:dns";
import { buildConnector, Pool } from "undici";
import { SluiceError, unavailable } from "../errors.ts";
import type { HttpOrigin, HttpOriginOptions, HttpRequest, HttpResponse } from "./http.ts";
import { guardedLookup, type Lookup } from "./metadata-address.ts";
import { UndiciReply } from "./undici-reply.ts";

/**
 * Node's form of `OpenHttpOrigin`: one undici pool an endpoint, HTTP/1.1, no pipelining, redirects never followed, no
 * connection to an address of instance metadata.
 */
export function openUndiciOrigin(
  origin: string,
  options: HttpOriginOptions,
  lookup: Lookup = systemLookup as Lookup,
): HttpOrigin {
  const pool = new Pool(origin, {
    connections: options.connections,
    pipelining: 1,
    allowH2: false,
    connect: buildConnector({
      timeout: options.connectTimeoutMs,
      keepAlive: true,
      keepAliveInitialDelay: 15_000,
      lookup: guardedLookup(lookup),
    }),
    // Long answers are the rule; dispatch owns the deadline between tokens.
    bodyTimeout: 0,
    headersTimeout: 0,
    keepAliveTimeout: 30_000,
  });

  return {
    async request(request) {
      try {
        return await send(pool, request);
      } catch (error) {
        throw request.signal.aborted ? request.signal.reason : unreachable(error);
      }
    },
    close: () => pool.destroy(),
  };
}

function send(pool: Pool, request: HttpRequest): Promise<HttpResponse> {
  const reply = new UndiciReply(request.signal);
  pool.dispatch(
    {
      method: request.method,
      path: request.path,
      headers: request.headers ?? {},
      body: request.body ?? null,
      headersTimeout: request.headersTimeoutMs ?? 0,
      bodyTimeout: request.bodyTimeoutMs ?? 0,
    },
    reply,
  );
  return reply.begun;
}

function unreachable(error: unknown): SluiceError {
  if (error instanceof SluiceError) return error;
  return unavailable("backend_unreachable", "A backend could not be reached.", { cause: error });
}
