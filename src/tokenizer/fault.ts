import { SluiceError } from "../errors.ts";

/**
 * A tokenizer or model file that cannot be used: the operator's fault, found while loading, never a caller's.
 * `message` names the file's own part that is wrong (a key, an offset, a field), since that is what helps.
 */
export function tokenizerFault(message: string, cause?: unknown): SluiceError {
  return new SluiceError({ status: 500, type: "server_error", code: "bad_tokenizer_file", message, cause });
}
