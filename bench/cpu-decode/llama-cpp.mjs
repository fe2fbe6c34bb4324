// The peer: llama.cpp as npm `@node-llama-cpp/linux-x64` ships it. One process, one measurement; prints one line of JSON.
//
//   node llama-cpp.mjs PEER_FOLDER MODEL THREADS PROMPT_TOKENS DECODE_TOKENS CHUNK FLASH
//
// It drives the binding's context directly (batch in, decode, no sampling), since the public generator adds promises per
// token that are not llama.cpp's. Tokens are forced, so both engines compute exactly the same positions.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, modelPath, threads, promptTokens, decodeTokens, chunk, flash] = process.argv.slice(2);
const entry = createRequire(`${folder}/package.json`).resolve("node-llama-cpp");
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(entry).href);

const llama = await getLlama({ gpu: false, build: "never", progressLogs: false, logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath });
const total = Number(promptTokens) + Number(decodeTokens);
const context = await model.createContext({
  contextSize: total + 16,
  batchSize: Number(chunk),
  threads: { ideal: Number(threads), min: Number(threads) },
  flashAttention: flash === "1",
});
const binding = context._ctx;
binding.setThreads(Number(threads));

// The same arithmetic stream of ids as sluice-bench.
let state = 1;
const tokens = Uint32Array.from({ length: total }, () => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return 3 + ((state >>> 8) % 49000);
});

async function run(first, n) {
  binding.initBatch(n);
  binding.addToBatch(0, first, tokens.slice(first, first + n), Uint32Array.of(n - 1));
  await binding.decodeBatch();
}

async function timed(work) {
  const cpu = process.cpuUsage();
  const start = process.hrtime.bigint();
  await work();
  const used = process.cpuUsage(cpu);
  return { wall: Number(process.hrtime.bigint() - start) / 1e9, cpu: (used.user + used.system) / 1e6 };
}

async function prefill() {
  for (let at = 0; at < Number(promptTokens); at += Number(chunk))
    await run(at, Math.min(Number(chunk), Number(promptTokens) - at));
}

await prefill(); // warm: pages of the model, thread pool
binding.disposeSequence(0);
const prompt = await timed(prefill);
const decode = await timed(async () => {
  for (let at = Number(promptTokens); at < total; at += 1) await run(at, 1);
});
process.stdout.write(`${JSON.stringify({ prefill: prompt, decode, threads: binding.getThreads() })}\n`);
process.exit(0);
