import { createTracing, noTracing, type Tracing } from "./spans.ts";

export interface StartedTracing {
  readonly tracing: Tracing;
  /** Sends what is still held back. */
  close(): Promise<void>;
}

/**
 * Tracing for Node. The SDK takes hundreds of milliseconds to load, so it is loaded only when there is somewhere to send
 * spans: `endpoint` (OTLP over HTTP, the traces URL), else OTEL_EXPORTER_OTLP_(TRACES_)ENDPOINT. The SDK reads the rest of
 * its OTEL_ settings from `environment`, which has to be the process's own.
 */
export async function startTracing(
  endpoint: string | undefined,
  service: string,
  environment: Record<string, string | undefined>,
): Promise<StartedTracing> {
  const configured =
    endpoint ?? environment.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT ?? environment.OTEL_EXPORTER_OTLP_ENDPOINT;
  if (configured === undefined) return { tracing: noTracing, close: async () => {} };
  const { NodeSDK } = await import("@opentelemetry/sdk-node");
  // The SDK builds its exporter from the environment; the configuration file is one more way to fill it.
  if (endpoint !== undefined) environment.OTEL_EXPORTER_OTLP_TRACES_ENDPOINT = endpoint;
  const sdk = new NodeSDK({
    serviceName: environment.OTEL_SERVICE_NAME ?? service,
    metricReaders: [],
    logRecordProcessors: [],
  });
  sdk.start();
  return { tracing: createTracing(), close: () => sdk.shutdown() };
}
