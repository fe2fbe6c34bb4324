/**
 * Very many streams through one gateway and one daemon, half of them left by their callers: nothing may be left behind.
 *
 *     node bench/soak/run.ts [--streams 5000] [--concurrency 64] [--seed 1] [--every N] [--out DIR] [--help]
 *
 * Two processes as `sluice gateway` and `sluice daemon` start them; the model is tiny and random, so that the engine is
 * real and a hundred thousand streams take minutes. Callers leave as soon as their request is written, at a random moment
 * before the first byte, or behind a random event. At the end, once idle: no account of KV blocks, rows, reservations or
 * places is open, no socket is left but those of the gateway's idle pool, and the second half has needed no more memory
 * than the first. Writes soak.json and soak.md. Exit code 1 when a check fails.
 */
import { createHash, randomBytes } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { tinyModel } from "../../test/support/tiny-model.ts";
import { answersPerStream, runCallers } from "./callers.ts";
import { freePort, metricsOf, type Process, resourcesOf, startSluice } from "./processes.ts";
import { type Check, idleChecks, machine, mebibytes, peaks, type Sample } from "./report.ts";

const { values: flags } = parseArgs({
  options: {
    streams: { type: "string", default: "5000" },
    concurrency: { type: "string", default: "64" },
    seed: { type: "string", default: "1" },
    every: { type: "string" },
    out: { type: "string", default: fileURLToPath(new URL("../results/", import.meta.url)) },
    help: { type: "boolean", default: false },
  },
});
if (flags.help) {
  process.stdout.write(
    "usage: node bench/soak/run.ts [--streams 5000] [--concurrency 64] [--seed 1] [--every N] [--out DIR]\n" +
      "--every N: a line of progress and a sample each N streams (default: a fiftieth of them)\n",
  );
  process.exit(0);
}
const streams = Number(flags.streams);
const concurrency = Number(flags.concurrency);
const every = Number(flags.every ?? Math.max(1, Math.floor(streams / 50)));

/** Bytes. A leak of 336 a stream would show in a hundred thousand. */
const growthBound = 16 * 2 ** 20;
/** Of fewer, what caches and a heap grow to at first is most of what is measured. */
const fewStreams = 50_000;

/** Mulberry32 (Tommy Ettinger, 2017). */
function randomFrom(start: number): () => number {
  let state = start;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 0x1_0000_0000;
  };
}

const folder = await mkdtemp(join(tmpdir(), "sluice-soak-"));
const model = await tinyModel();
const key = `sk-${randomBytes(12).toString("hex")}`;
const daemon = await startSluice(
  ["daemon", "--model", model, "--threads", "1", "--kv-tokens", "16384", "--max-rows", "32"],
  await freePort(),
  join(folder, "daemon.log"),
);
const config = join(folder, "gateway.json");
await writeFile(
  config,
  JSON.stringify({
    models: { tiny: { pools: ["all"], tokenizer: `file:${join(model, "tokenizer.json")}` } },
    pools: {
      all: { backend: "daemon", endpoints: [daemon.url], deadlines: { firstToken: "60s", betweenTokens: "60s" } },
    },
    tenants: { t: { keys: [`sha256:${createHash("sha256").update(key).digest("hex")}`] } },
  }),
);
const gateway = await startSluice(["gateway", "--config", config], await freePort(), join(folder, "gateway.log"));

const samples: Sample[] = [];
let began = performance.now();
async function sample(done: number): Promise<Sample> {
  // One after the other: asking is a connection too.
  const metrics = await metricsOf(gateway);
  const [ofGateway, ofDaemon] = await Promise.all([resourcesOf(gateway), resourcesOf(daemon)]);
  const seconds = (performance.now() - began) / 1000;
  const active = metrics.get("sluice_active_requests") ?? Number.NaN;
  return { done, seconds, gateway: ofGateway, daemon: ofDaemon, active };
}
const tell = ({ done, seconds, gateway: g, daemon: d, active }: Sample) =>
  process.stdout.write(
    `${String(done).padStart(7)} streams  ${seconds.toFixed(0).padStart(4)} s  ${(done / seconds).toFixed(0).padStart(4)}/s  ` +
      `RSS ${mebibytes(g.residentBytes)} + ${mebibytes(d.residentBytes)} MiB  sockets ${g.sockets} + ${d.sockets}  ` +
      `active ${active}\n`,
  );

const common = { url: gateway.url, key, model: "tiny", random: randomFrom(Number(flags.seed)) };
// What a first request opens stays open: the connection of the two processes, grammar compilers.
await runCallers({ ...common, streams: 50, concurrency: 1, onDone: () => {} });
began = performance.now();
const before = await sample(0);
tell(before);

let sampling: Promise<unknown> = Promise.resolve();
const tally = await runCallers({
  ...common,
  streams,
  concurrency,
  onDone(done) {
    if (done % every !== 0) return;
    sampling = sampling.then(async () => {
      const taken = await sample(done);
      samples.push(taken);
      tell(taken);
    });
  },
});
await sampling;
const seconds = (performance.now() - began) / 1000;
const loaded = await sample(streams);

/** Callers are gone at once; a gateway may take a moment to see that the last ones are. */
async function settle(): Promise<Sample> {
  const until = performance.now() + 20_000;
  for (;;) {
    const now = await sample(streams);
    if ((now.gateway.accepted === 0 && now.active === 0) || performance.now() > until) return now;
    await sleep(200);
  }
}
const after = await settle();
tell(after);

const left = tally.left["at-once"] + tally.left["before-first-byte"] + tally.left["mid-stream"];
const growthCheck = (of: "gateway" | "daemon"): Check => {
  const [first, second] = peaks(samples, of);
  const judged = streams >= fewStreams;
  const bound = judged ? `at most ${mebibytes(growthBound)} more` : `not judged below ${fewStreams} streams`;
  return {
    name: `${of}: MiB of RSS, peak of the first half and of the second (${bound})`,
    value: `${mebibytes(first)}, ${mebibytes(second)}`,
    holds: !judged || second - first <= growthBound,
  };
};
/** Connections of the gateway to the daemon: never more than answers have run at once, and a few for probes and the KV feed. */
const between = after.daemon.accepted;
const socketChecks: Check[] = [
  {
    name: "connections of callers that the gateway still has",
    value: String(after.gateway.accepted),
    holds: after.gateway.accepted === 0,
  },
  {
    name: "the gateway's other sockets beyond those of before: its idle pool, open at both ends",
    value: `${after.gateway.sockets - before.gateway.sockets}, pool ${between - before.daemon.accepted}`,
    holds:
      after.gateway.sockets - before.gateway.sockets === between - before.daemon.accepted &&
      between <= answersPerStream * concurrency + 8,
  },
  {
    name: "the daemon's sockets beyond those of before and that pool",
    value: String(after.daemon.sockets - before.daemon.sockets - (between - before.daemon.accepted)),
    holds: after.daemon.sockets - before.daemon.sockets === between - before.daemon.accepted,
  },
];
const checks: Check[] = [
  { name: "streams that failed", value: String(tally.failed), holds: tally.failed === 0 },
  {
    name: "streams that ended or were left, of all",
    value: `${tally.whole} + ${left} of ${streams}`,
    holds: tally.whole + left === streams,
  },
  growthCheck("gateway"),
  growthCheck("daemon"),
  ...socketChecks,
  ...idleChecks(await metricsOf(gateway), await metricsOf(daemon)),
];

const cpuMs = (of: "gateway" | "daemon") => ((loaded[of].cpuSeconds - before[of].cpuSeconds) * 1000) / streams;
const result = {
  date: new Date().toISOString(),
  machine: machine(),
  streams,
  concurrency,
  seed: Number(flags.seed),
  seconds: Math.round(seconds),
  streamsPerSecond: Math.round(streams / seconds),
  cpuMsPerStream: { gateway: Number(cpuMs("gateway").toFixed(2)), daemon: Number(cpuMs("daemon").toFixed(2)) },
  tally,
  checks,
  samples,
};
await writeFile(join(flags.out, "soak.json"), `${JSON.stringify(result, undefined, 1)}\n`);
await writeFile(join(flags.out, "soak.md"), markdown());

function markdown(): string {
  const { cpu, cores, memoryGiB, node } = result.machine;
  const rows = samples.filter((_, index) => index % Math.max(1, Math.floor(samples.length / 10)) === 0);
  return [
    "# Soak: streams through a gateway and a daemon, half of them left",
    "",
    `\`node bench/soak/run.ts --streams ${streams} --concurrency ${concurrency} --seed ${flags.seed}\`, ${result.date}, ` +
      `${cpu}, ${cores} cores, ${memoryGiB} GiB, Node ${node}; a tiny random model, so the engine's share is small.`,
    "",
    `${streams} streams in ${result.seconds} s (${result.streamsPerSecond} a second): ${tally.whole} came to their end; ` +
      `${tally.left["at-once"]} were left at once, ${tally.left["before-first-byte"]} before the first byte, ` +
      `${tally.left["mid-stream"]} in the middle; ${tally.failed} failed. ` +
      `CPU a stream: gateway ${result.cpuMsPerStream.gateway} ms, daemon ${result.cpuMsPerStream.daemon} ms.`,
    "",
    "| Check | Value | Holds |",
    "|---|---|---|",
    ...checks.map(({ name, value, holds }) => `| ${name} | ${value} | ${holds ? "yes" : "**no**"} |`),
    "",
    "| Streams | Gateway RSS, MiB | Daemon RSS, MiB | Sockets | Active |",
    "|--:|--:|--:|--:|--:|",
    ...rows.map(
      ({ done, gateway: g, daemon: d, active }) =>
        `| ${done} | ${mebibytes(g.residentBytes)} | ${mebibytes(d.residentBytes)} | ${g.sockets} + ${d.sockets} | ${active} |`,
    ),
    "",
  ].join("\n");
}

for (const { name, value, holds } of checks) process.stdout.write(`${holds ? "ok  " : "FAIL"} ${name}: ${value}\n`);
for (const failure of tally.failures) process.stdout.write(`${failure}\n`);
const ended: Process[] = [gateway, daemon];
for (const each of ended) await each.end();
await rm(folder, { recursive: true, force: true });
await rm(model, { recursive: true, force: true });
process.exitCode = checks.every(({ holds }) => holds) ? 0 : 1;
