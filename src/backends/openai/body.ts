import { Readable, pipeline } from "node:stream";
import { createBrotliDecompress, createGunzip, createInflate } from "node:zlib";
import { SluiceError } from "../../errors.ts";
import type { HttpResponse } from "../http.ts";

/**
 * The body without its `content-encoding`: what was flushed at the sender comes out at once. We ask for none, but proxies
 * compress unasked. Throws SluiceError `backend_incompatible` for an encoding that is not known; iterating rejects when the
 * body ends before its encoding does.
 */
export function decodedBody(response: HttpResponse): AsyncIterable<Uint8Array> {
  const encoding = response.header("content-encoding")?.trim().toLowerCase() ?? "identity";
  if (encoding === "identity" || encoding === "") return response.body;
  const decoder = decoderFor(encoding);
  if (decoder === undefined) {
    throw new SluiceError({
      status: 502,
      type: "server_error",
      code: "backend_incompatible",
      message: "A backend's answer is encoded in a way that is not known.",
      retryable: true,
    });
  }
  // Errors of either side reach the reader through `decoder`.
  return pipeline(Readable.from(response.body), decoder, () => {});
}

function decoderFor(encoding: string) {
  if (encoding === "gzip" || encoding === "x-gzip") return createGunzip();
  if (encoding === "deflate") return createInflate();
  if (encoding === "br") return createBrotliDecompress();
  return undefined;
}

/** A whole small body as text; undefined when it is longer than `limit` bytes, breaks off or cannot be decoded. */
export async function smallBody(response: HttpResponse, limit: number): Promise<string | undefined> {
  const decoder = new TextDecoder();
  let text = "";
  let size = 0;
  try {
    for await (const chunk of decodedBody(response)) {
      size += chunk.byteLength;
      if (size > limit) return undefined;
      text += decoder.decode(chunk, { stream: true });
    }
    return text + decoder.decode();
  } catch {
    return undefined;
  }
}

/** Undefined for what is no JSON. */
export function parseJson(text: string | undefined): unknown {
  try {
    return text === undefined ? undefined : JSON.parse(text);
  } catch {
    return undefined;
  }
}
