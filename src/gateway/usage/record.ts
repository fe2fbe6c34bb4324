import type { SluiceError } from "../../errors.ts";
import type { LogFields } from "../../telemetry/logs.ts";
import type { RequestOutcome } from "../../telemetry/metrics.ts";
import type { RequestTrace } from "../../telemetry/spans.ts";
import type { Lease } from "../admit.ts";
import type { Outcome } from "../request.ts";

/** What is known of a request when it ends, however early. */
export interface Ending {
  readonly id: string;
  readonly api: string;
  readonly receivedAt: number;
  readonly trace: RequestTrace;
  /** Known once the key was. */
  readonly tenant: string | undefined;
  /** A configured name, or undefined: a label must not come from a caller. */
  readonly model: string | undefined;
  readonly stream: boolean;
  readonly status: number;
  readonly lease: Lease | undefined;
  /** Gives back the tenant's place; also part of the lease. */
  readonly leave: (() => void) | undefined;
  readonly outcome: Outcome | undefined;
  readonly error: SluiceError | undefined;
}

/** What a request cost and how it ended, for the log and the ledger: no prompt, no answer, no key. */
export function usageRecord(ending: Ending, durationMs: number, outcome: RequestOutcome): LogFields {
  const { outcome: relayed } = ending;
  return {
    id: ending.id,
    api: ending.api,
    tenant: ending.tenant,
    model: ending.model,
    stream: ending.stream,
    status: ending.status,
    outcome,
    finish: relayed?.finish,
    error: ending.error?.code,
    inputTokens: relayed?.usage.promptTokens,
    cachedTokens: relayed?.usage.cachedTokens,
    outputTokens: relayed?.usage.completionTokens,
    reservedTokens: ending.lease?.reservedTokens,
    firstTokenMs: relayed?.firstTokenAt === undefined ? undefined : round(relayed.firstTokenAt - ending.receivedAt),
    durationMs: round(durationMs),
  };
}

const round = (ms: number): number => Math.round(ms * 100) / 100;
