import { SluiceError } from "../errors.ts";

export type ModelFaultCode =
  | "bad_model_reference"
  | "model_not_found"
  | "model_access_denied"
  | "model_checksum_mismatch"
  | "model_too_large"
  | "model_source_failed"
  | "model_lock_failed"
  | "disk_full";

/** A model that cannot be brought or found: the operator's matter, shown by the CLI and at start-up. */
export function modelFault(
  code: ModelFaultCode,
  message: string,
  options: { cause?: unknown; retryable?: boolean } = {},
): SluiceError {
  return new SluiceError({ status: 500, type: "server_error", code, message, ...options });
}

/** The fault for a failed write: a full disk is told plainly, anything else stays as it was. */
export function writeFault(error: unknown, path: string): unknown {
  const code = errorCode(error);
  if (code === "ENOSPC" || code === "EDQUOT")
    return modelFault("disk_full", `the disk is full: ${path} cannot be written`, { cause: error });
  return error;
}

/** Node's error code (`ENOENT`, `ECONNRESET`, ...), undefined for anything else. */
export function errorCode(error: unknown): string | undefined {
  return error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : undefined;
}
