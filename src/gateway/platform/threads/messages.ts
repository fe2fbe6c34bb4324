import type { Config } from "../../../config/schema.ts";
import { SluiceError, type SluiceErrorOptions } from "../../../errors.ts";
import type { GrammarArtifact } from "../../../grammar/grammar.ts";
import type { Counted } from "../../../telemetry/metrics.ts";
import type { Seen } from "../../routing/share.ts";
import type { SharedMemory } from "./memory.ts";

/**
 * What the main thread and the others say to each other. Only what is rare goes this way: tables that decide about requests
 * lie in shared memory.
 */

/** Slots as the main thread gave them out. */
export interface GivenSlots {
  readonly backends: ReadonlyMap<string, number>;
  readonly pools: ReadonlyMap<string, number>;
}

export type Tenants = ReadonlyMap<string, number>;

/** What a thread is started with. */
export interface ThreadStart {
  /** From 1; the main thread is 0. */
  readonly thread: number;
  readonly memory: SharedMemory;
  readonly config: Config;
  readonly tenants: Tenants;
  readonly slots: GivenSlots;
  /** What is known of the backends by now. */
  readonly seen: ReadonlyMap<string, Seen>;
  readonly environment: Readonly<Record<string, string | undefined>>;
  readonly saltKey: Uint8Array<ArrayBuffer>;
  readonly host: string;
  readonly port: number;
  /** Where the main thread's clock has its zero, on the machine's monotonic clock in milliseconds. */
  readonly clockZero: number;
}

/** A SluiceError on its way: an instance would arrive as a plain Error. */
export type ToldError = SluiceErrorOptions;

export type ToThread =
  | { readonly type: "build"; readonly config: Config; readonly tenants: Tenants }
  | { readonly type: "abandon" }
  | { readonly type: "commit"; readonly config: Config; readonly tenants: Tenants; readonly slots: GivenSlots }
  | { readonly type: "seen"; readonly backend: string; readonly seen: Seen }
  | { readonly type: "compiled"; readonly id: number; readonly artifact: GrammarArtifact }
  | { readonly type: "refused"; readonly id: number; readonly error: ToldError }
  | { readonly type: "count" }
  | { readonly type: "exposed"; readonly id: number; readonly text: string }
  | { readonly type: "drain"; readonly graceMs: number };

export type FromThread =
  | { readonly type: "listening" }
  /** It cannot start. */
  | { readonly type: "failed"; readonly error: ToldError }
  /** Every model has had a backend that produces tokens. */
  | { readonly type: "ready" }
  | { readonly type: "built"; readonly error: ToldError | undefined }
  | { readonly type: "committed" }
  | { readonly type: "suspect"; readonly backend: string }
  /** `source` as JSON: what a caller sent may nest deeper than a message can. */
  | { readonly type: "compile"; readonly id: number; readonly key: string; readonly source: string }
  | { readonly type: "leave"; readonly id: number }
  | { readonly type: "counted"; readonly counted: Counted }
  | { readonly type: "expose"; readonly id: number }
  | { readonly type: "log"; readonly lines: readonly string[] }
  | { readonly type: "drained" };

export function tell({
  status,
  type,
  code,
  message,
  param,
  retryable,
  retryAfterMs,
  metricLabel,
}: SluiceError): ToldError {
  return { status, type, code, message, param, retryable, retryAfterMs, metricLabel };
}

export const heard = (error: ToldError): SluiceError => new SluiceError(error);
