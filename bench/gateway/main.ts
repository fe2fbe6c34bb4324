import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { resolveModel } from "../../src/models/index.ts";
import { openTokenizer } from "../../src/tokenizer/node.ts";
import type { CellResult, Command, TurnsResult } from "./load.ts";
import { installPeers } from "./peers.ts";
import { cpuBetween, cpuOf, end, message, residentMb, type Spawned, start } from "./processes.ts";
import { type Cell, type Latency, latencyOf, machine, type Results, render } from "./report.ts";
import { startTarget, type Target, type TargetName, targetNames } from "./targets.ts";
import { verify } from "./verify.ts";
import { answerOf } from "./workload.ts";
import { type Workload, workloads } from "./workloads.ts";

const { values: options } = parseArgs({
  options: {
    rounds: { type: "string", default: "5" },
    seconds: { type: "string", default: "3" },
    "warm-up": { type: "string", default: "20" },
    turns: { type: "string", default: "60" },
    targets: { type: "string", default: targetNames.filter((name) => !name.startsWith("other")).join(";") },
    other: { type: "string" },
    workloads: { type: "string", default: workloads.map(({ name }) => name).join(";") },
    "gateway-core": { type: "string", default: "0" },
    "load-core": { type: "string", default: "1" },
    "sluice-args": { type: "string", default: "" },
    "sluice-node-args": { type: "string", default: "" },
    peers: { type: "string", default: fileURLToPath(new URL("../../.cache/peers", import.meta.url)) },
    out: { type: "string" },
    help: { type: "boolean", default: false },
  },
});
if (options.help) {
  process.stdout.write(`What a gateway costs: CPU a request and a chunk, added latency, memory; Sluice beside its peers in one interleaved run.

usage: node bench/gateway/run.mjs [--rounds 5] [--seconds 3] [--warm-up 20] [--turns 60] [--out bench/results/gateway]
       [--targets "NAME;NAME"] [--workloads "NAME;NAME"] [--gateway-core 0] [--load-core 1]
       [--sluice-args=ARGS] [--sluice-node-args=ARGS] [--other CLONE] [--peers FOLDER]

  --rounds     measurements of each cell; every round visits all targets, every second one in reverse order
  --seconds    length of one measurement
  --warm-up    seconds that each target works before anything is measured
  --turns      requests of one caller to each target in turn and round, for added latency
  --out        writes OUT.json and OUT.md
  --targets    ${targetNames.map((name) => `"${name}"`).join(", ")}
  --workloads  ${workloads.map(({ name }) => `"${name}"`).join(", ")}
  --other      another clone of Sluice, for the targets named "other": a change beside what was before it

Linux with taskset, npm and python3 with venv; installs the peers into --peers the first time.
`);
  process.exit(0);
}

const say = (text: string): void => void process.stderr.write(`${text}\n`);
const count = (name: "rounds" | "seconds" | "turns" | "warm-up" | "gateway-core" | "load-core"): number => {
  const value = Number(options[name]);
  if (!(value >= 0)) throw new Error(`--${name} takes a number`);
  return value;
};
function chosen<Name extends string>(known: readonly Name[], asked: string): Name[] {
  return asked.split(";").map((name) => {
    const found = known.find((one) => one === name.trim());
    if (found === undefined) throw new Error(`nothing is named "${name}": ${known.join("; ")}`);
    return found;
  });
}
const rounds = count("rounds");
const seconds = count("seconds");
const turns = count("turns");
const gatewayCore = count("gateway-core");
const loadCore = count("load-core");
const warmUp = count("warm-up");
const warmUpParts = 2;
const names = chosen(targetNames, options.targets);
if (options.other === undefined && names.some((name) => name.startsWith("other"))) {
  throw new Error("a target named `other` needs --other CLONE");
}
const wanted = chosen(
  workloads.map(({ name }) => name),
  options.workloads,
);
const chosenWorkloads = workloads.filter(({ name }) => wanted.includes(name));

const startedAt = performance.now();
const peers = installPeers(options.peers, say);
const { path: modelPath } = await resolveModel("smollm2", { signal: AbortSignal.timeout(300_000) });
const tokenizer = `gguf:${modelPath}`;
const answer = answerOf(await openTokenizer(tokenizer));
const folder = mkdtempSync(join(tmpdir(), "sluice-bench-gateway-"));
const own = (file: string, args: readonly string[]): Spawned =>
  start(process.execPath, [fileURLToPath(new URL(file, import.meta.url)), ...args], {
    core: loadCore,
    logFile: join(folder, `${file}.log`),
    ipc: true,
  });

const processes: Spawned[] = [];
const started = (spawned: Spawned): Spawned => {
  processes.push(spawned);
  return spawned;
};

async function ask<Result>(load: Spawned, command: Command): Promise<Result> {
  const told = message<{ result?: Result; error?: string }>(load);
  load.child.send(command);
  const { result, error } = await told;
  if (result === undefined) throw new Error(error ?? "the load generator gave nothing");
  return result;
}

async function run(): Promise<Results> {
  say(`logs in ${folder}`);
  const text = started(own("text-upstream.ts", [tokenizer]));
  const { url: textUrl } = await message<{ url: string }>(text);
  const token = started(own("token-upstream.ts", [tokenizer]));
  const { url: tokenUrl } = await message<{ url: string }>(token);
  const load = started(own("load.ts", []));
  await message(load);
  const split = (args: string): string[] => args.split(" ").filter((arg) => arg !== "");
  const targets: Target[] = [];
  for (const name of names) {
    const target = await startTarget(name, {
      core: gatewayCore,
      folder,
      textUrl,
      tokenUrl,
      tokenizer,
      peers,
      otherClone: options.other,
      sluiceArgs: split(options["sluice-args"]),
      sluiceNodeArgs: split(options["sluice-node-args"]),
    });
    started(target.process);
    targets.push(target);
    await verify(target.endpoint, answer.pieces.join(""));
    say(`${name}: up, and its answers are right`);
  }
  const pace = async (paced: boolean): Promise<void> => {
    for (const upstream of [text, token]) {
      const told = message(upstream);
      upstream.child.send({ paced });
      await told;
    }
  };
  const cellOf = (target: Target, workload: Workload, ms: number): Promise<CellResult> =>
    ask(load, { type: "cell", endpoint: target.endpoint, stream: workload.stream, concurrency: workload.callers, ms });

  // A gateway runs for days: its compiler has long come to rest. The first seconds of a process are mostly compiling.
  for (let part = 0; part < warmUpParts; part++) {
    for (const workload of chosenWorkloads) {
      await pace(workload.paced);
      for (const target of targets)
        await cellOf(target, workload, (warmUp * 1_000) / warmUpParts / chosenWorkloads.length);
    }
  }
  say(`warm after ${elapsed()}`);

  const cells: Cell[] = [];
  const latency = { json: new Map<string, number[]>(), first: new Map<string, number[]>() };
  for (let round = 0; round < rounds; round++) {
    const order = round % 2 === 0 ? targets : targets.toReversed();
    for (const workload of chosenWorkloads) {
      await pace(workload.paced);
      for (const target of order) {
        const before = cpuOf(target.process.pid);
        const result = await cellOf(target, workload, seconds * 1_000);
        // What an answer leaves to be done (its log line, its settlement) belongs to it.
        await sleep(100);
        const cpuMs = cpuBetween(before, cpuOf(target.process.pid));
        cells.push({
          round,
          target: target.name,
          workload: workload.name,
          cpuUs: (cpuMs * 1_000) / result.requests,
          ...result,
        });
      }
    }
    await pace(false);
    await latencies(load, targets, textUrl, latency);
    say(`round ${round + 1} of ${rounds} after ${elapsed()}`);
  }
  return {
    machine: machine(),
    options: { rounds, seconds, warmUp, turns, sluiceArgs: options["sluice-args"] },
    workloads: chosenWorkloads,
    cells,
    latency: { json: summed(latency.json), first: summed(latency.first) },
    residentMb: Object.fromEntries(targets.map((target) => [target.name, residentMb(target.process.pid)])),
  };
}

/** Milliseconds of single requests, to the upstream itself and through each gateway in turn. */
async function latencies(
  load: Spawned,
  targets: readonly Target[],
  textUrl: string,
  into: { readonly json: Map<string, number[]>; readonly first: Map<string, number[]> },
): Promise<void> {
  const direct = { port: Number(new URL(textUrl).port), headers: {} };
  const endpoints = [direct, ...targets.map(({ endpoint }) => endpoint)];
  const labels: Array<TargetName | "direct"> = ["direct", ...targets.map(({ name }) => name)];
  const keep = (map: Map<string, number[]>, values: readonly number[][]): void => {
    for (const [index, label] of labels.entries())
      map.set(label, [...(map.get(label) ?? []), ...(values[index] ?? [])]);
  };
  keep(into.json, (await ask<TurnsResult>(load, { type: "turns", endpoints, stream: false, rounds: turns })).whole);
  keep(into.first, (await ask<TurnsResult>(load, { type: "turns", endpoints, stream: true, rounds: turns })).first);
}

const summed = (map: ReadonlyMap<string, readonly number[]>): Record<string, Latency> =>
  Object.fromEntries(Array.from(map, ([label, ms]) => [label, latencyOf(ms)]));

const elapsed = (): string => `${Math.round((performance.now() - startedAt) / 1000)} s`;

try {
  const results = await run();
  const table = render(results);
  process.stdout.write(`${table}\n`);
  if (options.out !== undefined) {
    const rounded = (_: string, value: unknown) => (typeof value === "number" ? Number(value.toFixed(3)) : value);
    writeFileSync(`${options.out}.json`, `${JSON.stringify(results, rounded, 2)}\n`);
    writeFileSync(`${options.out}.md`, `${table}\n`);
    say(`written: ${options.out}.json, ${options.out}.md`);
  }
} finally {
  for (const spawned of processes.toReversed()) await end(spawned);
}
process.exit(0);
