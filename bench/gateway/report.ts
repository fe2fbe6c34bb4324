import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { cpus, loadavg, release, totalmem } from "node:os";
import { fileURLToPath } from "node:url";
import type { CellResult } from "./load.ts";
import { peerVersions } from "./peers.ts";
import { type TargetName, targetNames } from "./targets.ts";
import { tokensInAnswer } from "./workload.ts";
import type { Workload } from "./workloads.ts";

export interface Cell extends CellResult {
  readonly round: number;
  readonly target: TargetName;
  readonly workload: string;
  /** Microseconds of CPU a request. */
  readonly cpuUs: number;
}

export interface Results {
  readonly machine: ReturnType<typeof machine>;
  readonly options: {
    readonly rounds: number;
    readonly seconds: number;
    readonly warmUp: number;
    readonly turns: number;
    readonly sluiceArgs: string;
  };
  readonly workloads: readonly Workload[];
  readonly cells: readonly Cell[];
  /** To the whole JSON answer, and to the first event of a stream; by target and `direct`. */
  readonly latency: Readonly<Record<"json" | "first", Readonly<Record<string, Latency>>>>;
  /** By target, in the order of the table. */
  readonly residentMb: Readonly<Record<string, number>>;
}

/** Milliseconds. */
export interface Latency {
  readonly p50: number;
  readonly p99: number;
  readonly requests: number;
}

export const latencyOf = (ms: readonly number[]): Latency => ({
  p50: quantile(ms, 0.5),
  p99: quantile(ms, 0.99),
  requests: ms.length,
});

export function machine() {
  const manifest = readFileSync(fileURLToPath(new URL("../../package.json", import.meta.url)), "utf8");
  const { dependencies } = JSON.parse(manifest) as { dependencies: Record<string, string> };
  let commit = "unknown";
  try {
    commit = execFileSync("git", ["describe", "--always", "--dirty"], { encoding: "utf8" }).trim();
  } catch {
    // An archive without a history.
  }
  return {
    date: new Date().toISOString(),
    cpu: cpus()[0]?.model ?? "unknown",
    cores: cpus().length,
    memoryGb: Math.round(totalmem() / 1e9),
    kernel: release(),
    load: loadavg()
      .map((value) => value.toFixed(1))
      .join(" "),
    node: process.version,
    hono: dependencies.hono,
    nodeServer: dependencies["@hono/node-server"],
    undici: dependencies.undici,
    sluice: commit,
    ...peerVersions,
  };
}

const sorted = (values: readonly number[]): number[] => values.toSorted((a, b) => a - b);
const quantile = (values: readonly number[], share: number): number => {
  const ordered = sorted(values);
  return ordered[Math.min(ordered.length - 1, Math.floor(ordered.length * share))] ?? Number.NaN;
};
const median = (values: readonly number[]): number => {
  const ordered = sorted(values);
  const middle = ordered.length / 2;
  return ((ordered[Math.floor(middle)] ?? Number.NaN) + (ordered[Math.ceil(middle) - 1] ?? Number.NaN)) / 2;
};
const span = (values: readonly number[], digits = 0): string => {
  if (values.length === 0) return "";
  return `${median(values).toFixed(digits)} (${Math.min(...values).toFixed(digits)}-${Math.max(...values).toFixed(digits)})`;
};
const row = (fields: readonly string[]): string => `| ${fields.join(" | ")} |`;

export function render(results: Results): string {
  const { machine: m, options } = results;
  const targets = targetNames.filter((name) => Object.hasOwn(results.residentMb, name));
  const values = (target: string, workload: string, read: (cell: Cell) => number): number[] =>
    results.cells.filter((cell) => cell.target === target && cell.workload === workload).map(read);
  const burst = results.workloads.filter(({ paced }) => !paced);
  const paced = results.workloads.filter((workload) => workload.paced);
  const lines = [
    "# What a gateway costs",
    "",
    `${m.cpu}, ${m.cores} cores, ${m.memoryGb} GB, Linux ${m.kernel}; ${m.date}; load average ${m.load} at the end.`,
    `Node ${m.node}, hono ${m.hono}, @hono/node-server ${m.nodeServer}, undici ${m.undici}; Sluice ${m.sluice}; Portkey ${m["@portkey-ai/gateway"]} with @hono/node-server ${m["@hono/node-server"]}; smg ${m.smg}, vllm-router ${m["vllm-router"]}.`,
    `${options.rounds} interleaved rounds, ${options.seconds} s a measurement, ${options.warmUp} s of warm-up for each; gateways on one core, callers and upstreams on another. Median (range).`,
    ...(options.sluiceArgs === "" ? [] : [`Sluice with \`${options.sluiceArgs}\`.`]),
    "",
    "CPU microseconds, user and kernel: a request, and for paced streams a chunk (a request's share and its chunk).",
    "",
    row([
      "",
      ...burst.map(({ name }) => `${name}, a request`),
      ...paced.map(({ name }) => `${name}, a chunk`),
      "RSS MB",
    ]),
    row(["---", ...[...burst, ...paced].map(() => "--:"), "--:"]),
    ...targets.map((target) =>
      row([
        target,
        ...burst.map(({ name }) => span(values(target, name, (cell) => cell.cpuUs))),
        ...paced.map(({ name }) =>
          span(
            values(target, name, (cell) => cell.cpuUs / tokensInAnswer),
            1,
          ),
        ),
        (results.residentMb[target] ?? Number.NaN).toFixed(0),
      ]),
    ),
    "",
    "One caller, a request to each in turn: milliseconds beyond the same request to the upstream itself.",
    "",
    row(["", "JSON p50", "JSON p99", "first event p50", "first event p99"]),
    row(["---", "--:", "--:", "--:", "--:"]),
    ...targets.map((target) =>
      row([
        target,
        ...(["json", "first"] as const).flatMap((kind) =>
          (["p50", "p99"] as const).map((share) => {
            const { [target]: through, direct } = results.latency[kind];
            return ((through?.[share] ?? Number.NaN) - (direct?.[share] ?? Number.NaN)).toFixed(2);
          }),
        ),
      ]),
    ),
    "",
    "Paced streams as they arrived: pieces an answer, and milliseconds between two pieces (p50 / p99); the upstream's step is 5 ms.",
    "",
    row(["", ...paced.map(({ name }) => name)]),
    row(["---", ...paced.map(() => "--:")]),
    ...targets.map((target) =>
      row([
        target,
        ...paced.map(({ name }) => {
          const [reads, p50, p99] = [
            values(target, name, (cell) => cell.readsPerRequest),
            values(target, name, (cell) => cell.gapP50),
            values(target, name, (cell) => cell.gapP99),
          ].map(median);
          return `${reads?.toFixed(0)}; ${p50?.toFixed(1)} / ${p99?.toFixed(1)}`;
        }),
      ]),
    ),
    "",
    ...aims(results, targets, values),
  ];
  return lines.join("\n");
}

/** The aims, each as the ratio of two targets within one round: what else the machine did falls on both. */
function aims(
  { cells, workloads }: Results,
  targets: readonly TargetName[],
  values: (target: string, workload: string, read: (cell: Cell) => number) => number[],
): string[] {
  const rounds = [...new Set(cells.map(({ round }) => round))];
  const cpuOf = (target: string, workload: string, round: number): number | undefined =>
    cells.find((cell) => cell.target === target && cell.workload === workload && cell.round === round)?.cpuUs;
  const line = (ours: TargetName, theirs: TargetName, workload: string, aim: string): string[] => {
    if (values(ours, workload, (cell) => cell.cpuUs).length === 0) return [];
    const ratios = rounds.flatMap((round) => {
      const [a, b] = [cpuOf(ours, workload, round), cpuOf(theirs, workload, round)];
      return a === undefined || b === undefined ? [] : [a / b];
    });
    return ratios.length === 0 ? [] : [row([`${ours} / ${theirs}`, workload, span(ratios, 2), aim])];
  };
  const ours = targets.filter((name) => name.startsWith("sluice"));
  const before = (name: TargetName): string[] =>
    targets
      .filter((other) => other === `other ${name}`)
      .flatMap((other) => workloads.flatMap((workload) => line(name, other, workload.name, "")));
  return [
    "Ratios of CPU within a round, median (range).",
    "",
    row(["", "workload", "ratio", "aim"]),
    row(["---", "---", "--:", "--:"]),
    ...ours.flatMap((name) => [
      ...line(name, "bare hono", "json", "<= 1.5"),
      ...line(name, "portkey", "json", "<= 0.25"),
      ...line(name, "bare hono", "burst", "<= 1"),
      ...line(name, "smg", "paced 16", name === "sluice, daemon" ? "< 1" : ""),
      ...line(name, "smg", "paced 64", name === "sluice, daemon" ? "< 1" : ""),
      ...before(name),
    ]),
  ];
}
