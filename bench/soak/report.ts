import { cpus, release, totalmem } from "node:os";
import type { Metrics, Resources } from "./processes.ts";

export interface Sample {
  readonly done: number;
  readonly seconds: number;
  readonly gateway: Resources;
  readonly daemon: Resources;
  readonly active: number;
}

export interface Check {
  readonly name: string;
  readonly value: string;
  readonly holds: boolean;
}

/**
 * Bytes: the most that a process held in the first half of the run and in the second. The memory of a collected heap is a
 * saw whose teeth are many thousand streams long, so that a line through it tells of its phase; what is never given back
 * lifts its tips.
 */
export function peaks(samples: readonly Sample[], of: "gateway" | "daemon"): readonly [first: number, second: number] {
  const resident = samples.map((sample) => sample[of].residentBytes);
  const middle = Math.floor(resident.length / 2);
  return [Math.max(...resident.slice(0, middle)), Math.max(...resident.slice(middle))];
}

/** What a gateway still holds for requests; each must be 0 when none is under way. */
const heldByGateway = [
  "sluice_active_requests",
  "sluice_reserved_tokens",
  "sluice_prepare_waiting",
  "sluice_preparing",
  "sluice_prepare_bytes",
];
const heldByDaemon = [
  "sluice_daemon_running_rows",
  "sluice_daemon_queued_rows",
  "sluice_daemon_pending_prefill_tokens",
  "sluice_daemon_open_answers",
];

/** KV accounts, and what is still held. A gauge that is not there fails. */
export function idleChecks(gateway: Metrics, daemon: Metrics): Check[] {
  const zero = (metrics: Metrics, name: string): Check => {
    const value = metrics.get(name);
    return { name, value: value === undefined ? "missing" : String(value), holds: value === 0 };
  };
  const blocks = (state: string) => daemon.get(`sluice_daemon_kv_blocks{state="${state}"}`) ?? Number.NaN;
  const [total, free, cached, leased] = [blocks("total"), blocks("free"), blocks("cached"), blocks("leased")];
  return [
    ...heldByGateway.map((name) => zero(gateway, name)),
    ...heldByDaemon.map((name) => zero(daemon, name)),
    {
      name: "KV blocks: free + cached + leased = total, leased = 0",
      value: `${free} + ${cached} + ${leased} = ${total}`,
      holds: free + cached + leased === total && leased === 0,
    },
  ];
}

export const mebibytes = (bytes: number): string => (bytes / 2 ** 20).toFixed(1);

export const machine = (): Readonly<Record<string, string | number>> => ({
  cpu: cpus()[0]?.model ?? "unknown",
  cores: cpus().length,
  memoryGiB: Math.round(totalmem() / 2 ** 30),
  kernel: release(),
  node: process.version,
});
