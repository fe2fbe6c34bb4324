import type { SluiceError } from "../../errors.ts";

/** OpenAI's error object: the whole body of a failed answer, and the data of the event that ends a broken stream. */
export function errorBody(error: SluiceError): string {
  const { message, type, code, param } = error;
  return JSON.stringify({ error: { message, type, param: param ?? null, code } });
}

/** Hints that SDKs act on: when to come back, and whether coming back can help at all. */
export function errorHeaders(error: SluiceError): Record<string, string> {
  const headers: Record<string, string> = { "content-type": "application/json" };
  if (error.retryAfterMs !== undefined) {
    headers["retry-after"] = String(Math.max(1, Math.ceil(error.retryAfterMs / 1000)));
    headers["retry-after-ms"] = String(Math.ceil(error.retryAfterMs));
  }
  // openai-node repeats 408, 409, 429 and every 5xx unless told not to.
  if (!error.retryable && (error.status >= 500 || error.status === 429)) {
    headers["x-should-retry"] = error.retryAfterMs === undefined ? "false" : "true";
  }
  if (error.status === 401) headers["www-authenticate"] = "Bearer";
  return headers;
}
