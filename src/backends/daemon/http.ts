import { createHash, timingSafeEqual } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { z } from "zod";
import { asSluiceError, invalidRequest, SluiceError } from "../../errors.ts";

/** What the daemon's routes need of node:http: bounded bodies, checked JSON, errors as `errorBody`. */

/** Throws 413 `body_too_large` above `limit`, counted in bytes as they come, so chunked bodies meet the same bound. */
export async function readBody(request: IncomingMessage, limit: number): Promise<Buffer> {
  const tooLarge = () =>
    new SluiceError({
      status: 413,
      type: "invalid_request_error",
      code: "body_too_large",
      message: `The body is larger than ${limit} bytes.`,
    });
  if (Number(request.headers["content-length"] ?? 0) > limit) throw tooLarge();
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > limit) throw tooLarge();
    chunks.push(chunk);
  }
  return Buffer.concat(chunks, size);
}

/** Throws 400 `malformed_json`, or 400 `invalid_value` with the path of the first fault. */
export function parseJson<Schema extends z.ZodType>(body: Buffer, schema: Schema): z.output<Schema> {
  let value: unknown;
  try {
    value = JSON.parse(body.toString("utf8"));
  } catch {
    throw invalidRequest("malformed_json", "The body is not JSON.");
  }
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  throw invalidRequest("invalid_value", issue?.message ?? "The body is invalid.", pathText(issue?.path ?? []));
}

function pathText(path: readonly PropertyKey[]): string {
  return path.reduce<string>((text, part) => {
    if (typeof part === "number") return `${text}[${part}]`;
    return text === "" ? String(part) : `${text}.${String(part)}`;
  }, "");
}

export function sendJson(response: ServerResponse, status: number, value: unknown): void {
  if (response.headersSent || response.destroyed) return;
  const body = JSON.stringify(value);
  response.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(body) });
  response.end(body);
}

/** Anything but a SluiceError becomes a 500 that tells nothing of the inside. */
export function sendError(response: ServerResponse, error: unknown): void {
  const { status, code, message, retryable, param, retryAfterMs } = asSluiceError(error);
  if (response.headersSent || response.destroyed) {
    response.destroy();
    return;
  }
  if (retryAfterMs !== undefined) response.setHeader("retry-after", Math.max(1, Math.ceil(retryAfterMs / 1000)));
  // The rest of a refused body is not read, so the connection cannot be used again.
  if (status === 413) response.setHeader("connection", "close");
  sendJson(response, status, { error: { code, message, retryable, ...(param === undefined ? {} : { param }) } });
}

/** Compares digests, so that neither the length nor a common prefix of the key shows in the time it takes. */
export function bearerMatches(header: string | undefined, key: string): boolean {
  const given = createHash("sha256")
    .update(header ?? "")
    .digest();
  const wanted = createHash("sha256").update(`Bearer ${key}`).digest();
  return timingSafeEqual(given, wanted);
}
