// Decode and prefill against llama.cpp on one machine in one run: same GGUF, same token ids, interleaved rounds.
//
//   node bench/cpu-decode/bench.mjs --sluice PATH/sluice-bench [--model GGUF] [--peer FOLDER] [--threads 1,2]
//                                   [--rounds 5] [--prompt 512] [--decode 128] [--chunk 512] [--out FILE]
//
// FOLDER holds node-llama-cpp 3.22.1 and @node-llama-cpp/linux-x64 3.22.1 (README.md says how). Every measurement is a
// process of its own: sluice, llama.cpp, sluice with 8-bit activations, llama.cpp with flash attention, and again, so
// that whatever else the machine does falls on all alike. Prints a table; --out also writes it as Markdown.
import { execFileSync } from "node:child_process";
import { existsSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";

const root = path.resolve(import.meta.dirname, "../..");
const { values: options } = parseArgs({
  options: {
    sluice: { type: "string", default: path.join(root, "native/build/sluice-bench") },
    model: { type: "string", default: path.join(root, ".sluice/models/SmolLM2-135M-Instruct.Q4_1.gguf") },
    peer: { type: "string", default: path.join(root, ".cache/peers/llama") },
    threads: { type: "string", default: "1,2" },
    rounds: { type: "string", default: "5" },
    prompt: { type: "string", default: "512" },
    decode: { type: "string", default: "128" },
    chunk: { type: "string", default: "512" },
    out: { type: "string" },
  },
});
for (const [what, where] of [
  ["sluice-bench", options.sluice],
  ["model", options.model],
  ["peer", path.join(options.peer, "node_modules/node-llama-cpp")],
]) {
  if (!existsSync(where)) {
    process.stderr.write(`no ${what} at ${where}\n`);
    process.exit(1);
  }
}

function sluice(threads, env) {
  const args = [
    "--model",
    options.model,
    "--threads",
    threads,
    "--prompt",
    options.prompt,
    "--decode",
    options.decode,
    "--chunk",
    options.chunk,
    "--rounds",
    "1",
    "--json",
  ];
  return JSON.parse(execFileSync(options.sluice, args, { encoding: "utf8", env: { ...process.env, ...env } }));
}
function llama(threads, flash) {
  const args = [
    path.join(import.meta.dirname, "llama-cpp.mjs"),
    path.resolve(options.peer),
    options.model,
    threads,
    options.prompt,
    options.decode,
    options.chunk,
    flash,
  ];
  return JSON.parse(execFileSync(process.execPath, args, { encoding: "utf8" }));
}
const contenders = [
  ["sluice", (threads) => sluice(threads, {})],
  ["llama.cpp", (threads) => llama(threads, "0")],
  ["sluice, 8-bit activations", (threads) => sluice(threads, { SLUICE_ACTIVATION_BITS: "8" })],
  ["llama.cpp, flash attention", (threads) => llama(threads, "1")],
];

const middle = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];
const lines = [
  `${os.cpus()[0].model}, ${os.cpus().length} cores seen, load average ${os
    .loadavg()
    .map((l) => l.toFixed(1))
    .join(" ")} at the start; ` +
    `${options.prompt} prompt tokens in chunks of ${options.chunk}, ${options.decode} decoded; ${options.rounds} interleaved rounds.`,
  "",
  "| threads | engine | prefill tok/s wall: median (best) | prefill tok/CPU-s: median (best) | decode tok/s wall: median (best) | decode tok/CPU-s: median (best) |",
  "|--:|---|--:|--:|--:|--:|",
];
for (const threads of options.threads.split(",")) {
  const samples = new Map(contenders.map(([name]) => [name, []]));
  for (let round = 0; round < Number(options.rounds); round += 1) {
    for (const [name, measure] of contenders) samples.get(name).push(measure(threads));
    process.stderr.write(`${threads} threads, round ${round + 1} of ${options.rounds}\n`);
  }
  for (const [name, runs] of samples) {
    const cell = (stage, clock, tokens) => {
      const rates = runs.map((run) => tokens / run[stage][clock]);
      return `${middle(rates).toFixed(0)} (${Math.max(...rates).toFixed(0)})`;
    };
    const p = Number(options.prompt);
    const d = Number(options.decode);
    lines.push(
      `| ${threads} | ${name} | ${cell("prefill", "wall", p)} | ${cell("prefill", "cpu", p)} | ${cell("decode", "wall", d)} | ${cell("decode", "cpu", d)} |`,
    );
  }
}
process.stdout.write(`${lines.join("\n")}\n`);
if (options.out) writeFileSync(options.out, `${lines.join("\n")}\n`);
