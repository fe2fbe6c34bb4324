import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, watch, writeFileSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import OpenAI from "openai";
import { drawSchemas } from "./draw.ts";
import { judge } from "./judge.ts";

/**
 * Real schemas against the running whole: draws schemas, asks the model for an answer to each over HTTP, and lets ajv judge
 * every answer that ended in `stop`. A refusal must be a 400 that names a path; nothing may hang.
 */
const { values: options } = parseArgs({
  options: {
    data: { type: "string" },
    count: { type: "string", default: "200" },
    seed: { type: "string", default: "1" },
    url: { type: "string" },
    key: { type: "string" },
    model: { type: "string", default: "smollm2" },
    "max-tokens": { type: "string", default: "512" },
    concurrency: { type: "string", default: "8" },
    temperature: { type: "string", default: "0" },
    "repetition-penalty": { type: "string", default: "1" },
    "frequency-penalty": { type: "string", default: "0" },
    "hang-after": { type: "string", default: "300" },
    out: { type: "string" },
    help: { type: "boolean", default: false },
  },
});
if (options.help || options.data === undefined) {
  process.stdout.write(
    "usage: node bench/schemas/run.ts --data DIR [--count 200] [--seed 1] [--url URL --key KEY] [--max-tokens 512]\n" +
      "       [--concurrency 8] [--temperature 0] [--repetition-penalty 1] [--frequency-penalty 0]\n" +
      "       [--hang-after SECONDS] [--out FILE]\n" +
      "DIR holds maskbench/*.jsonl. Without --url it starts `sluice up` on a free port and ends it afterwards.\n",
  );
  process.exit(options.help ? 0 : 2);
}

interface Row {
  readonly id: string;
  readonly outcome: "stop" | "length" | "refused" | "failed" | "hung";
  readonly verdict?: string;
  readonly detail?: string;
  readonly tokens?: number;
  readonly ms: number;
  readonly tail?: string;
}

async function startSluice(): Promise<{ url: string; key: string; stop: () => Promise<void> }> {
  const folder = mkdtempSync(join(tmpdir(), "sluice-bench-"));
  const ready = join(folder, "ready.json");
  const child = spawn(process.execPath, ["bin/sluice.mjs", "up", "--port", "0", "--ready-file", ready], {
    stdio: ["ignore", "ignore", "inherit"],
  });
  const appeared = new Promise<void>((resolve, reject) => {
    const watcher = watch(folder, () => {
      try {
        readFileSync(ready);
        watcher.close();
        resolve();
      } catch {
        // Written under another name and renamed: not there yet.
      }
    });
    child.once("exit", (code) => reject(new Error(`sluice up ended with ${code} before it was ready`)));
  });
  await appeared;
  const { url, key } = JSON.parse(readFileSync(ready, "utf8")) as { url: string; key: string };
  return {
    url,
    key,
    stop: async () => {
      child.kill("SIGINT");
      await once(child, "exit");
    },
  };
}

const server =
  options.url === undefined
    ? await startSluice()
    : { url: options.url, key: options.key ?? "", stop: () => Promise.resolve() };
const client = new OpenAI({
  baseURL: `${server.url}/v1`,
  apiKey: server.key,
  maxRetries: 0,
  timeout: Number(options["hang-after"]) * 1000,
});

async function ask(id: string, schema: unknown): Promise<Row> {
  const started = performance.now();
  const ms = () => Math.round(performance.now() - started);
  try {
    const answer = await client.chat.completions.create({
      model: options.model,
      temperature: Number(options.temperature),
      frequency_penalty: Number(options["frequency-penalty"]),
      seed: Number(options.seed),
      // vLLM's name; the client passes members it does not know.
      ...{ repetition_penalty: Number(options["repetition-penalty"]) },
      max_completion_tokens: Number(options["max-tokens"]),
      messages: [
        { role: "system", content: "You answer with one short JSON value that follows the given JSON Schema." },
        {
          role: "user",
          content: `JSON Schema:\n${JSON.stringify(schema).slice(0, 6000)}\n\nGive one short example value.`,
        },
      ],
      response_format: {
        type: "json_schema",
        json_schema: { name: "answer", schema: schema as Record<string, unknown> },
      },
    });
    const choice = answer.choices[0];
    const text = choice?.message.content ?? "";
    const tokens = answer.usage?.completion_tokens ?? 0;
    if (choice?.finish_reason !== "stop") return { id, outcome: "length", tokens, ms: ms(), tail: text.slice(-80) };
    const verdict = judge(schema, text);
    return {
      id,
      outcome: "stop",
      verdict: verdict.kind,
      ...(verdict.kind === "valid" ? {} : { detail: verdict.why, tail: text.slice(0, 300) }),
      tokens,
      ms: ms(),
    };
  } catch (error) {
    if (error instanceof OpenAI.APIConnectionTimeoutError) return { id, outcome: "hung", ms: ms() };
    if (error instanceof OpenAI.APIError && error.status === 400) {
      const named = typeof error.param === "string" && error.param !== "";
      return {
        id,
        outcome: named ? "refused" : "failed",
        detail: `${error.param ?? "NO PATH"}: ${error.message}`,
        ms: ms(),
      };
    }
    return { id, outcome: "failed", detail: error instanceof Error ? error.message : String(error), ms: ms() };
  }
}

const drawn = drawSchemas(options.data, Number(options.count), Number(options.seed));
const rows: Row[] = [];
const waiting = drawn.values();
const started = performance.now();
async function worker(): Promise<void> {
  for (const { id, schema } of waiting) {
    rows.push(await ask(id, schema));
    process.stderr.write(`\r${rows.length}/${drawn.length} ${Math.round((performance.now() - started) / 1000)} s `);
  }
}
await Promise.all(Array.from({ length: Number(options.concurrency) }, worker));
process.stderr.write("\n");
await server.stop();

const count = (predicate: (row: Row) => boolean) => rows.filter(predicate).length;
const refused = count((row) => row.outcome === "refused");
const accepted = rows.length - refused;
const stopped = count((row) => row.outcome === "stop");
const tokens = rows.reduce((sum, row) => sum + (row.tokens ?? 0), 0);
const seconds = (performance.now() - started) / 1000;
const share = (part: number, whole: number) =>
  `${part} of ${whole} (${((100 * part) / Math.max(1, whole)).toFixed(1)} %)`;
const report = [
  `machine: ${cpus().length} x ${cpus()[0]?.model ?? "?"}; seed ${options.seed}, temperature ${options.temperature}, repetition penalty ${options["repetition-penalty"]}, frequency penalty ${options["frequency-penalty"]}, ${options.concurrency} at once`,
  `accepted            ${share(accepted, rows.length)}`,
  `refused, path named ${share(refused, rows.length)}`,
  `ended in stop       ${share(stopped, accepted)}`,
  `  valid by ajv      ${share(
    count((row) => row.verdict === "valid"),
    stopped,
  )}`,
  `  INVALID           ${count((row) => row.verdict === "invalid")}`,
  `  ajv cannot judge  ${count((row) => row.verdict === "unjudged")}`,
  `ended in length     ${share(
    count((row) => row.outcome === "length"),
    accepted,
  )}`,
  `failed otherwise    ${count((row) => row.outcome === "failed")}`,
  `hung                ${count((row) => row.outcome === "hung")}`,
  `${tokens} tokens in ${seconds.toFixed(0)} s = ${(tokens / seconds).toFixed(1)} tokens/s`,
].join("\n");
process.stdout.write(`${report}\n`);
for (const row of rows) {
  if (row.outcome !== "stop" || row.verdict !== "valid") {
    process.stdout.write(
      `${row.outcome} ${row.verdict ?? ""} ${row.id} ${row.detail ?? ""} ${row.tail === undefined ? "" : JSON.stringify(row.tail)}\n`,
    );
  }
}
if (options.out !== undefined) writeFileSync(options.out, `${rows.map((row) => JSON.stringify(row)).join("\n")}\n`);
const broken = count((row) => row.verdict === "invalid" || row.outcome === "failed" || row.outcome === "hung");
process.exit(broken === 0 ? 0 : 1);
