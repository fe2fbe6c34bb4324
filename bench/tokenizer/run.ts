/**
 * Encoding speed of src/tokenizer, per CPU-second of this process (other load on the machine does not count).
 *
 *     node bench/tokenizer/run.ts [--tokenizer gguf:PATH | file:PATH/tokenizer.json] [--file NAME=PATH ...] [--out FILE]
 *
 * Texts: the Markdown of the installed packages (`english`), their JavaScript (`code`), and any `--file`; 1 MB each.
 * `cold`: the first pass of a fresh tokenizer over a text that it has never seen; `uncached`: the same with the piece
 * cache off, code already hot; `warm`: the best of four more passes over the same text, which flatters by the cache.
 */
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { resolveModel } from "../../src/models/index.ts";
import { openTokenizer } from "../../src/tokenizer/node.ts";

const TEXT_BYTES = 1_000_000;
const PROMPT_CHARACTERS = 600;
const WARM_PASSES = 4;

/** The first megabyte of files with one of `endings`, in a fixed order, at most 40 kB of each so that none dominates. */
function packagedText(endings: readonly string[]): string {
  const root = fileURLToPath(new URL("../../node_modules/", import.meta.url));
  let text = "";
  for (const name of readdirSync(root)
    .filter((entry) => !entry.startsWith("."))
    .sort()) {
    const files = readdirSync(join(root, name), { recursive: true, encoding: "utf8" }).sort();
    for (const file of files) {
      if (file.includes("node_modules") || file.includes(".min.") || !endings.some((ending) => file.endsWith(ending)))
        continue;
      text += readFileSync(join(root, name, file), "utf8").slice(0, 40_000);
      if (text.length >= TEXT_BYTES) return text.slice(0, TEXT_BYTES);
    }
  }
  return text;
}

/** Milliseconds of CPU that `work` took. */
function cpuMs(work: () => void): number {
  const before = process.cpuUsage();
  work();
  const used = process.cpuUsage(before);
  return (used.user + used.system) / 1000;
}

const { values: options } = parseArgs({
  options: {
    tokenizer: { type: "string" },
    file: { type: "string", multiple: true, default: [] },
    out: { type: "string" },
  },
});

const reference =
  options.tokenizer ?? `gguf:${(await resolveModel("smollm2", { signal: AbortSignal.timeout(600_000) })).path}`;
const texts: [string, string][] = [
  ["english", packagedText([".md"])],
  ["code", packagedText([".js", ".mjs"])],
];
for (const given of options.file) {
  const [name = "", path = ""] = given.split("=");
  texts.push([name, readFileSync(path, "utf8").slice(0, TEXT_BYTES)]);
}

const rows = [];
for (const [name, text] of texts) {
  const megabytes = Buffer.byteLength(text) / 1e6;
  const started = process.cpuUsage();
  const tokenizer = await openTokenizer(reference);
  const loaded = process.cpuUsage(started);
  const loadMs = (loaded.user + loaded.system) / 1000;

  let tokens = 0;
  const cold = cpuMs(() => {
    tokens = tokenizer.encode(text).length;
  });
  const warm = Math.min(...Array.from({ length: WARM_PASSES }, () => cpuMs(() => tokenizer.encode(text))));
  const fresh = await openTokenizer(reference, { pieceCacheEntries: 0 });
  const uncached = cpuMs(() => fresh.encode(text));
  const prompts = Array.from({ length: Math.floor(text.length / PROMPT_CHARACTERS) }, (_, index) =>
    text.slice(index * PROMPT_CHARACTERS, (index + 1) * PROMPT_CHARACTERS),
  );
  const allPrompts = cpuMs(() => {
    for (const prompt of prompts) tokenizer.encode(prompt);
  });
  const perPrompt = allPrompts / prompts.length;
  const ids = tokenizer.encode(text);
  const decoding = cpuMs(() => tokenizer.decode(ids));
  rows.push({
    text: name,
    tokens,
    loadMs: Math.round(loadMs),
    coldMBs: Number(((megabytes / cold) * 1000).toFixed(1)),
    uncachedMBs: Number(((megabytes / uncached) * 1000).toFixed(1)),
    warmMBs: Number(((megabytes / warm) * 1000).toFixed(1)),
    usPer600: Math.round(perPrompt * 1000),
    decodeMBs: Number(((megabytes / decoding) * 1000).toFixed(1)),
  });
}
const report = {
  machine: `${cpus()[0]?.model ?? "unknown"}, ${cpus().length} CPUs, Node ${process.version}`,
  tokenizer: reference.slice(reference.lastIndexOf("/") + 1),
  rssMB: Math.round(process.memoryUsage().rss / 1e6),
  rows,
};
process.stdout.write(`${report.machine}\n`);
process.stdout.write("text      load ms  cold MB/s  uncached  warm  us/600 chars  decode MB/s\n");
for (const row of rows) {
  const cells = [row.loadMs, row.coldMBs, row.uncachedMBs, row.warmMBs, row.usPer600, row.decodeMBs];
  process.stdout.write(`${row.text.padEnd(10)}${cells.map((cell) => String(cell).padStart(8)).join(" ")}\n`);
}
if (options.out !== undefined) writeFileSync(options.out, `${JSON.stringify(report, undefined, 2)}\n`);
