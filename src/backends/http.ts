/**
 * What an adapter needs of an HTTP client. The Node form is `undici.ts`; a Workers form wraps fetch.
 * One `HttpOrigin` talks to one endpoint and keeps its connections.
 */
export interface HttpRequest {
  readonly method: "GET" | "POST" | "PUT" | "DELETE";
  /** Path and query; the origin is fixed. */
  readonly path: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string | Uint8Array | undefined;
  /** Aborting destroys the connection at once, in every phase; the promise or the body then rejects with its reason. */
  readonly signal: AbortSignal;
  /** 0 or absent = the caller's own deadline is the only one. */
  readonly headersTimeoutMs?: number;
  /** Longest silence within the body; 0 or absent = none. */
  readonly bodyTimeoutMs?: number;
}

export interface HttpResponse {
  readonly status: number;
  /** Lower-case name; the first value where several were sent. */
  header(name: string): string | undefined;
  /** To be iterated once. Leaving the iteration early destroys the connection. */
  readonly body: AsyncIterable<Uint8Array>;
  /** Closes the connection without reading the rest. */
  destroy(): void;
}

export interface HttpOrigin {
  /** Rejects with SluiceError `backend_unreachable` when no connection comes up, or with the signal's reason. */
  request(request: HttpRequest): Promise<HttpResponse>;
  close(): Promise<void>;
}

export interface HttpOriginOptions {
  readonly connectTimeoutMs: number;
  /** Sockets to one endpoint; each running generation holds one. */
  readonly connections: number;
}

export type OpenHttpOrigin = (origin: string, options: HttpOriginOptions) => HttpOrigin;
