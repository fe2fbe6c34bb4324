import { SluiceError, unavailable } from "../../errors.ts";
import type { HttpResponse } from "../http.ts";
import { errorBody } from "./protocol.ts";

const maxErrorBytes = 64 * 1024;

/** A whole small body as text. Throws SluiceError `backend_error` when it is not small. */
export async function readBounded(response: HttpResponse, limit = maxErrorBytes): Promise<string> {
  const decoder = new TextDecoder();
  let text = "";
  let size = 0;
  for await (const chunk of response.body) {
    size += chunk.byteLength;
    if (size > limit) throw unavailable("backend_error", "The backend's answer is larger than expected.");
    text += decoder.decode(chunk, { stream: true });
  }
  return text + decoder.decode();
}

/**
 * What a daemon's refusal means for the gateway's caller. The request was made by the gateway, so only what the caller can
 * mend (a prompt that is too long) stays a 400; every other 4xx is a fault between the two, of which another backend may
 * be free.
 */
export async function daemonError(response: HttpResponse): Promise<SluiceError> {
  const { status } = response;
  const parsed = errorBody.safeParse(parseJson(await readBounded(response).catch(() => "")));
  const { code, message, retryable } = parsed.success
    ? parsed.data.error
    : { code: "backend_error", message: `The backend answered with status ${status}.`, retryable: true };
  const retryAfterMs = retryAfter(response.header("retry-after"));

  if (code === "prompt_too_long" || code === "kv_too_small") {
    return new SluiceError({
      status: 400,
      type: "invalid_request_error",
      code: "context_length_exceeded",
      message,
      retryable,
      metricLabel: code,
    });
  }
  if (code === "grammar_missing" || code === "unknown_stream")
    return new SluiceError({ status: 502, type: "server_error", code, message, retryable: true });
  if (status === 503 || status === 429) {
    return unavailable(code, "The backends cannot take more work now.", {
      ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
      cause: message,
    });
  }
  return new SluiceError({
    status: 502,
    type: "server_error",
    code: "backend_error",
    message: "A backend refused the request.",
    retryable: retryable || status >= 500 || status === 401 || status === 403 || status === 404,
    retryAfterMs,
    metricLabel: `backend_${code}`,
    cause: parsed.success ? parsed.data.error : undefined,
  });
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Seconds, as every daemon and engine sends it; a date is ignored. */
function retryAfter(header: string | undefined): number | undefined {
  const seconds = Number(header);
  return header === undefined || !Number.isFinite(seconds) || seconds < 0 ? undefined : seconds * 1000;
}
