import { invalidRequest } from "../errors.ts";
import type { Api, Call } from "./api/call.ts";
import { bodyError, dropUnknown } from "./api/issues.ts";
import type { Exchange } from "./platform/platform.ts";

export interface ReceiveOptions {
  readonly bodyBytes: number;
  readonly unknownFields: "refuse" | "ignore";
}

/**
 * The body -> what the caller asks for. Throws SluiceError: 413 above `bodyBytes`, 400 with the path of the first fault.
 */
export async function receive<Body>(exchange: Exchange, api: Api<Body>, options: ReceiveOptions): Promise<Call> {
  const text = await exchange.readBody(options.bodyBytes);
  const body = parseJson(text);
  let result = api.schema.safeParse(body);
  if (!result.success && options.unknownFields === "ignore" && dropUnknown(result.error.issues, body)) {
    result = api.schema.safeParse(body);
  }
  if (!result.success) throw bodyError(result.error.issues, body);
  return api.toCall(result.data);
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    // V8's message quotes the text around the fault, so it stays inside.
    throw invalidRequest("invalid_json", "The body is not valid JSON.");
  }
}
