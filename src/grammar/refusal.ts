import { invalidRequest, type SluiceError } from "../errors.ts";

/** Where a caller's schema stands in the request; faults are named by a JSON pointer below it. */
export const SCHEMA_PARAM = "response_format.json_schema.schema";

export type RefusalCode = "unsupported_schema" | "schema_too_complex" | "invalid_schema";

/**
 * Why a grammar source is refused, before it is known which part of the request it came from.
 * `path` is a JSON pointer into the source (`/properties/a/pattern`), empty for the root.
 */
export class Refusal extends Error {
  override readonly name = "Refusal";
  readonly code: RefusalCode;
  readonly path: string;

  constructor(code: RefusalCode, path: string, message: string) {
    super(message);
    this.code = code;
    this.path = path;
  }

  /** The 400 a caller sees; `base` names the part of the request that held the source. */
  toSluiceError(base: string = SCHEMA_PARAM): SluiceError {
    return invalidRequest(this.code, this.message, `${base}${this.path}`);
  }
}

export function unsupported(path: string, message: string): Refusal {
  return new Refusal("unsupported_schema", path, message);
}

export function tooComplex(path: string, message: string): Refusal {
  return new Refusal("schema_too_complex", path, message);
}

export function invalid(path: string, message: string): Refusal {
  return new Refusal("invalid_schema", path, message);
}

/** One more step of a JSON pointer (RFC 6901). */
export function below(path: string, step: string | number): string {
  return `${path}/${String(step).replaceAll("~", "~0").replaceAll("/", "~1")}`;
}
