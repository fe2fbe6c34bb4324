/** OpenAI error `type` values; callers' SDKs switch on these. */
export type ErrorType =
  | "invalid_request_error"
  | "authentication_error"
  | "permission_error"
  | "not_found_error"
  | "rate_limit_error"
  | "server_error";

export interface SluiceErrorOptions {
  /** HTTP status the caller gets. */
  readonly status: number;
  readonly type: ErrorType;
  /** Stable, machine-readable: `unknown_model`, `context_length_exceeded`, `grammar_missing`, ... */
  readonly code: string;
  /** Safe to show to a caller: holds no prompt text, no key, no address of a backend. */
  readonly message: string;
  /** Path of the fault in the caller's input, e.g. `messages[0].content` or `response_format.json_schema.schema/properties/a`. */
  readonly param?: string | undefined;
  /** True when the same request may succeed on another backend or later. */
  readonly retryable?: boolean;
  readonly retryAfterMs?: number | undefined;
  /** Low-cardinality label for metrics; defaults to `code`. */
  readonly metricLabel?: string;
  readonly cause?: unknown;
}

/** The one error family. Only `gateway/api` and the daemon's server turn it into a body. */
export class SluiceError extends Error {
  override readonly name = "SluiceError";
  readonly status: number;
  readonly type: ErrorType;
  readonly code: string;
  readonly param: string | undefined;
  readonly retryable: boolean;
  readonly retryAfterMs: number | undefined;
  readonly metricLabel: string;

  constructor(options: SluiceErrorOptions) {
    super(options.message, options.cause === undefined ? undefined : { cause: options.cause });
    this.status = options.status;
    this.type = options.type;
    this.code = options.code;
    this.param = options.param;
    this.retryable = options.retryable ?? false;
    this.retryAfterMs = options.retryAfterMs;
    this.metricLabel = options.metricLabel ?? options.code;
  }
}

/** 400 with the path of the fault. */
export function invalidRequest(code: string, message: string, param?: string): SluiceError {
  return new SluiceError({ status: 400, type: "invalid_request_error", code, message, param });
}

/** 503 that another backend or a later try may cure. */
export function unavailable(code: string, message: string, options: { retryAfterMs?: number; cause?: unknown } = {}) {
  return new SluiceError({ status: 503, type: "server_error", code, message, retryable: true, ...options });
}

/** Anything unexpected becomes a 500 whose message says nothing of the inside; the cause is kept for logs. */
export function asSluiceError(error: unknown): SluiceError {
  if (error instanceof SluiceError) return error;
  return new SluiceError({
    status: 500,
    type: "server_error",
    code: "internal_error",
    message: "The gateway failed on this request.",
    cause: error,
  });
}
