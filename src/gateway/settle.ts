import { SluiceError } from "../errors.ts";
import type { Gateway } from "./gateway.ts";
import { type Ending, usageRecord } from "./usage/record.ts";

/**
 * Ends every request that began, once: gives back what it held, counts it, writes its usage record, closes its span.
 * Never throws.
 */
export function settle(gateway: Gateway, ending: Ending): void {
  const { metrics, log, platform } = gateway;
  const span = ending.trace.stage("settle");
  try {
    ending.lease?.release();
    ending.leave?.();
    const model = ending.model ?? "unknown";
    const { error, outcome } = ending;
    const left = outcome?.finish === "cancelled" || error?.status === 499;
    const result = left ? "cancelled" : error === undefined ? "ok" : "error";
    metrics.requests.inc({ api: ending.api, model, outcome: result });
    if (error !== undefined && !left) metrics.errors.inc({ error: error.metricLabel });
    const durationMs = platform.clock.now() - ending.receivedAt;
    metrics.duration.observe({ model }, durationMs / 1000);
    if (outcome !== undefined) {
      metrics.tokens.inc({ model, kind: "input" }, outcome.usage.promptTokens);
      metrics.tokens.inc({ model, kind: "cached" }, outcome.usage.cachedTokens);
      metrics.tokens.inc({ model, kind: "output" }, outcome.usage.completionTokens);
    }
    const record = usageRecord(ending, durationMs, result);
    if (error !== undefined && error.status >= 500 && error.cause !== undefined) {
      log.error("request_failed", { ...record, cause: causeOf(error.cause) });
    } else {
      log.info("request", record);
    }
    ending.trace.set({ "http.response.status_code": ending.status, "sluice.outcome": result });
    if (error !== undefined) ending.trace.fail(error.code);
  } finally {
    span.end();
    ending.trace.end();
    gateway.settle();
  }
}

/** For the operator: where a failure came from. Our own errors are safe to print, foreign ones may quote a prompt. */
export function causeOf(cause: unknown): string {
  if (cause instanceof SluiceError) return `${cause.code}: ${cause.message}`;
  if (!(cause instanceof Error)) return typeof cause;
  const code = "code" in cause && typeof cause.code === "string" ? ` ${cause.code}` : "";
  const at = cause.stack?.split("\n").find((line) => line.trimStart().startsWith("at "));
  return `${cause.name}${code}${at === undefined ? "" : ` ${at.trim()}`}`;
}
