import type { Registry } from "prom-client";
import type { Config } from "../config/schema.ts";
import type { Logger } from "../telemetry/logs.ts";
import { type Counted, createGatewayMetrics, type GatewayMetrics } from "../telemetry/metrics.ts";
import type { Tracing } from "../telemetry/spans.ts";
import { Heartbeat } from "./answer/heartbeat.ts";
import type { Dispatcher } from "./dispatch/dispatch.ts";
import type { Platform } from "./platform/platform.ts";
import type { ServedModel } from "./prepare.ts";
import type { TenantDirectory } from "./tenants/directory.ts";
import type { TenantGate } from "./tenants/gate.ts";

/** What one configuration comes to. A reload makes a new one; requests keep the one they began with. */
export interface Services {
  readonly config: Config;
  readonly directory: TenantDirectory;
  /** A configured model is missing here where the platform cannot serve it. */
  readonly models: ReadonlyMap<string, ServedModel>;
  readonly dispatcher: Pick<Dispatcher, "dispatch" | "info" | "ready">;
}

export interface GatewayOptions {
  readonly platform: Platform;
  readonly log: Logger;
  readonly tracing: Tracing;
  readonly services: Services;
  readonly gates: ReadonlyMap<string, TenantGate>;
  /** One of several threads answers `/metrics` for all; absent = for itself. */
  readonly expose?: (() => Promise<string>) | undefined;
}

/** A running gateway: what outlives a configuration. */
export class Gateway {
  readonly platform: Platform;
  readonly log: Logger;
  readonly tracing: Tracing;
  readonly metrics: GatewayMetrics;
  readonly heartbeat: Heartbeat;
  /** Milliseconds since 1970. */
  readonly startedAt: number;
  services: Services;
  /** Set when no new request is taken. */
  draining = false;
  /** Aborted, with a SluiceError, when open answers must end now. */
  readonly shutdown = new AbortController();
  readonly #registry: Registry;
  #active = 0;
  #idle: Array<() => void> = [];

  constructor(options: GatewayOptions) {
    this.platform = options.platform;
    this.startedAt = options.platform.clock.wall();
    this.log = options.log;
    this.tracing = options.tracing;
    this.services = options.services;
    this.heartbeat = new Heartbeat(options.platform.clock, options.services.config.stream.keepAlive);
    const { gates } = options;
    const sum = (read: (gate: TenantGate) => number): number => {
      let total = 0;
      for (const gate of gates.values()) total += read(gate);
      return total;
    };
    const metrics = createGatewayMetrics({
      waiting: () => sum((gate) => gate.waiting),
      preparing: () => sum((gate) => gate.preparing),
      waitingBytes: () => sum((gate) => gate.bytes),
      reservedTokens: () => sum((gate) => gate.reservedTokens),
      active: () => this.#active,
    });
    const { expose } = options;
    const { registry } = metrics;
    this.metrics =
      expose === undefined ? metrics : { ...metrics, registry: { contentType: registry.contentType, metrics: expose } };
    this.#registry = registry;
  }

  /** What this thread has counted, for the one that adds up. */
  counted(): Promise<Counted> {
    return this.#registry.getMetricsAsJSON();
  }

  /** Requests that have not been settled. */
  get active(): number {
    return this.#active;
  }

  begin(): void {
    this.#active++;
  }

  settle(): void {
    this.#active--;
    if (this.#active > 0) return;
    const waiting = this.#idle;
    this.#idle = [];
    for (const resolve of waiting) resolve();
  }

  /** Resolves when nothing is active. */
  idle(): Promise<void> {
    if (this.#active === 0) return Promise.resolve();
    return new Promise((resolve) => this.#idle.push(resolve));
  }
}
