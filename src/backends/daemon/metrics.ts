import { Counter, Gauge, Registry } from "prom-client";
import type { EngineStats } from "../../engine/engine.ts";

export interface DaemonMetricsSource {
  readonly stats: () => EngineStats;
  readonly generations: {
    readonly size: number;
    readonly streams: number;
    readonly counts: { readonly cancelled: number; readonly tooSlow: number };
  };
  readonly kvSubscribers: () => number;
}

/** The daemon's Prometheus registry. Values are read from the engine when it is scraped; nothing is counted twice. */
export function daemonMetrics(source: DaemonMetricsSource): Registry {
  const registry = new Registry();
  const registers = [registry];
  const gauge = (name: string, help: string, read: () => number) =>
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(read());
      },
    });
  const counter = (name: string, help: string, read: () => number) =>
    new Counter({
      name,
      help,
      registers,
      collect() {
        this.reset();
        this.inc(read());
      },
    });
  const { stats } = source;

  gauge("sluice_daemon_running_rows", "Generations that hold a row.", () => stats().runningRows);
  gauge("sluice_daemon_queued_rows", "Generations that wait for a row.", () => stats().queuedRows);
  gauge(
    "sluice_daemon_pending_prefill_tokens",
    "Prompt tokens accepted and not yet computed.",
    () => stats().pendingPrefillTokens,
  );
  gauge("sluice_daemon_open_answers", "Answers under way.", () => source.generations.size);
  gauge("sluice_daemon_open_streams", "Open token streams, one a gateway thread.", () => source.generations.streams);
  gauge("sluice_daemon_kv_subscribers", "Open KV event feeds.", source.kvSubscribers);
  gauge(
    "sluice_daemon_stalled_seconds",
    "Time since the last finished step while there is work.",
    () => stats().stalledMs / 1000,
  );
  gauge("sluice_daemon_healthy", "1 while the engine makes progress.", () => (stats().healthy ? 1 : 0));
  gauge("sluice_daemon_step_seconds_max", "The longest step so far.", () => stats().stepMsMax / 1000);
  gauge("sluice_daemon_mask_seconds_max", "The slowest grammar mask so far.", () => stats().masks.maxMs / 1000);
  new Gauge({
    name: "sluice_daemon_kv_blocks",
    help: "KV blocks by state; free + cached + leased = total while the engine is idle.",
    labelNames: ["state"],
    registers,
    collect() {
      const { blocks } = stats();
      for (const state of ["total", "free", "cached", "leased"] as const) this.set({ state }, blocks[state]);
    },
  });
  counter("sluice_daemon_steps_total", "Forward passes.", () => stats().steps);
  counter("sluice_daemon_step_seconds_total", "Time in forward passes.", () => stats().stepMsTotal / 1000);
  counter("sluice_daemon_generated_tokens_total", "Sampled tokens.", () => stats().generatedTokens);
  counter("sluice_daemon_prefilled_tokens_total", "Prompt tokens computed.", () => stats().prefilledTokens);
  counter("sluice_daemon_masks_total", "Grammar masks filled.", () => stats().masks.count);
  counter("sluice_daemon_mask_seconds_total", "Time in grammar masks.", () => stats().masks.totalMs / 1000);
  counter(
    "sluice_daemon_cancelled_total",
    "Generations cancelled, whoever asked.",
    () => source.generations.counts.cancelled,
  );
  counter(
    "sluice_daemon_slow_readers_total",
    "Generations cancelled since their reader took no bytes.",
    () => source.generations.counts.tooSlow,
  );
  return registry;
}
