import { unavailable } from "../errors.ts";

/**
 * Splits a byte stream into the lines of an NDJSON body, parsed as JSON; blank lines are skipped. Each element is what one
 * chunk completed, so that a reader handles a burst in one turn.
 * Throws SluiceError `backend_stream_broken` on a line that is no JSON, one longer than `maxLineBytes`, and an unfinished
 * last line.
 */
export async function* readNdjson(body: AsyncIterable<Uint8Array>, maxLineBytes: number): AsyncGenerator<unknown[]> {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let rest = "";
  for await (const chunk of body) {
    const text = rest + decode(decoder, chunk);
    const end = text.lastIndexOf("\n");
    rest = text.slice(end + 1);
    if (rest.length > maxLineBytes) throw broken("a line is too long");
    if (end < 0) continue;
    const values: unknown[] = [];
    for (const line of text.slice(0, end).split("\n")) {
      if (line.length > maxLineBytes) throw broken("a line is too long");
      if (line.trim() !== "") values.push(parse(line));
    }
    if (values.length > 0) yield values;
  }
  if (rest.trim() !== "") throw broken("the last line is not complete");
}

/** The one error of an answer that stopped before its end or cannot be understood. */
export function broken(why: string, cause?: unknown) {
  return unavailable("backend_stream_broken", `The backend's answer broke off: ${why}.`, { cause });
}

function decode(decoder: TextDecoder, chunk: Uint8Array): string {
  try {
    return decoder.decode(chunk, { stream: true });
  } catch (error) {
    throw broken("it is not UTF-8", error);
  }
}

function parse(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch (error) {
    throw broken("a line is not JSON", error);
  }
}
