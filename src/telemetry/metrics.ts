import {
  AggregatorRegistry,
  Counter,
  Gauge,
  Histogram,
  type MetricObjectWithValues,
  type MetricValue,
  Registry,
} from "prom-client";

export type RequestOutcome = "ok" | "error" | "cancelled";

/** What a caller's request came to, from the gateway's point of view. */
export interface GatewayMetrics {
  /** What `/metrics` answers. */
  readonly registry: Pick<Registry, "metrics" | "contentType">;
  readonly requests: Counter<"api" | "model" | "outcome">;
  /** By `SluiceError.metricLabel`. */
  readonly errors: Counter<"error">;
  /** Seconds from the last byte of the request to the first token. */
  readonly firstToken: Histogram<"model">;
  /** Seconds between tokens of one choice. */
  readonly interToken: Histogram<"model">;
  /** Seconds a request spends in the gateway before a backend is asked: what Sluice itself costs. */
  readonly overhead: Histogram<"model">;
  readonly duration: Histogram<"model">;
  readonly tokens: Counter<"model" | "kind">;
  /** Choices taken on by another attempt: before their first output, or behind a part of it. */
  readonly retried: Counter<"model" | "when">;
  /** Second attempts beside late ones: their answer was taken (`won`), was not (`lost`), or there was none (`failed`). */
  readonly hedges: Counter<"pool" | "outcome">;
  /** Copies of requests that were sent to a shadow pool, or should have been. */
  readonly shadowed: Counter<"model" | "outcome">;
}

/** Read when scraped. */
export interface GatewayGauges {
  /** Requests that wait for a place in preparation, all tenants together. */
  waiting(): number;
  preparing(): number;
  /** Of bodies that are not prepared. */
  waitingBytes(): number;
  /** Tokens that running requests may still come to cost. */
  reservedTokens(): number;
  /** Requests that have begun and are not settled. */
  active(): number;
}

const seconds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

/** The gateway's Prometheus registry. Labels come from the configuration and from fixed lists, never from callers. */
export function createGatewayMetrics(gauges: GatewayGauges): GatewayMetrics & { readonly registry: Registry } {
  const registry = new Registry();
  const registers = [registry];
  const read = (name: string, help: string, value: () => number): Gauge =>
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(value());
      },
    });
  read("sluice_prepare_waiting", "Requests waiting to be prepared.", gauges.waiting);
  read("sluice_preparing", "Requests being prepared.", gauges.preparing);
  read("sluice_prepare_bytes", "Bytes of bodies that are not prepared.", gauges.waitingBytes);
  read("sluice_reserved_tokens", "Tokens that running requests may still come to cost.", gauges.reservedTokens);
  read("sluice_active_requests", "Requests between their arrival and their end.", gauges.active);
  const histogram = (name: string, help: string, buckets: number[]): Histogram<"model"> =>
    new Histogram({ name, help, labelNames: ["model"], buckets, registers });
  return {
    registry,
    requests: new Counter({
      name: "sluice_requests_total",
      help: "Requests to a generating API by how they ended.",
      labelNames: ["api", "model", "outcome"],
      registers,
    }),
    errors: new Counter({
      name: "sluice_errors_total",
      help: "Requests that ended in an error, by its kind.",
      labelNames: ["error"],
      registers,
    }),
    firstToken: histogram("sluice_time_to_first_token_seconds", "From the request to its first token.", seconds),
    interToken: histogram("sluice_inter_token_seconds", "Between tokens of one choice.", seconds.slice(0, 12)),
    overhead: histogram("sluice_overhead_seconds", "From the request to the moment a backend is asked.", [
      0.0001,
      0.00025,
      0.0005,
      ...seconds.slice(0, 10),
    ]),
    duration: histogram("sluice_request_seconds", "From the request to the end of its answer.", [...seconds, 120, 600]),
    tokens: new Counter({
      name: "sluice_tokens_total",
      help: "Tokens: input, the part of it that was cached, output.",
      labelNames: ["model", "kind"],
      registers,
    }),
    retried: new Counter({
      name: "sluice_retried_total",
      help: "Further attempts at an answer: before its first output, or resumed behind a part of it.",
      labelNames: ["model", "when"],
      registers,
    }),
    hedges: new Counter({
      name: "sluice_hedges_total",
      help: "Second attempts beside late ones, by whether their answer was taken.",
      labelNames: ["pool", "outcome"],
      registers,
    }),
    shadowed: new Counter({
      name: "sluice_shadow_total",
      help: "Copies of requests for a shadow pool, by what became of them.",
      labelNames: ["model", "outcome"],
      registers,
    }),
  };
}

/** One thread's metrics, in a form that can be sent to another. */
export type Counted = Array<MetricObjectWithValues<MetricValue<string>>>;

/** The metrics of all threads as one process's: counters, histograms and gauges added up. */
export const addedUp = (threads: readonly Counted[]): Promise<Counted> =>
  AggregatorRegistry.aggregate([...threads]).getMetricsAsJSON();

/** The same as text. */
export const expositionOf = (threads: readonly Counted[]): Promise<string> =>
  AggregatorRegistry.aggregate([...threads]).metrics();

/** What remains of a thread that has died: what it counted, but nothing of what it held. */
export const withoutGauges = (counted: Counted): Counted => counted.filter(({ type }) => String(type) !== "gauge");
