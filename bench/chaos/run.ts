/**
 * Daemons of the real model are killed while they answer: nobody may notice.
 *
 *     node bench/chaos/run.ts [--streams 64] [--kills 20] [--out DIR] [--help]
 *
 * Three `kill -9`-able daemon processes with SmolLM2 behind one gateway; streams of seeded, sampled answers that must obey a
 * JSON schema; a random daemon is killed whenever all three are ready and it is in the middle of answers, and started again
 * on its port. Each answer is compared with the one that the same seed is given while nothing is killed (content, finish
 * reason, usage), so that a token lost or told twice shows; ajv judges those. Set-up and judgement are those of
 * test/cluster/chaos.test.ts, which runs them with a tiny model. Writes chaos.json and chaos.md. Exit code 1 on any wrong
 * answer.
 */
import { writeFile } from "node:fs/promises";
import { cpus, totalmem } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Ajv } from "ajv";
import { chaos } from "../../test/support/chaos.ts";
import { startNativeDaemon } from "../../test/support/daemons.ts";
import { smollm2 } from "../../test/support/smollm2.ts";

const { values: flags } = parseArgs({
  options: {
    streams: { type: "string", default: "64" },
    kills: { type: "string", default: "20" },
    out: { type: "string", default: fileURLToPath(new URL("../results/", import.meta.url)) },
    help: { type: "boolean", default: false },
  },
});
if (flags.help) {
  process.stdout.write("usage: node bench/chaos/run.ts [--streams 64] [--kills 20] [--out DIR]\n");
  process.exit(0);
}
const streams = Number(flags.streams);
const kills = Number(flags.kills);
const seeds = 16;

const schema = {
  type: "object",
  properties: {
    name: { type: "string", maxLength: 24 },
    kind: { enum: ["person", "place", "thing"] },
    year: { type: "integer", minimum: 0, maximum: 2100 },
    tags: { type: "array", items: { enum: ["old", "new", "borrowed", "blue"] }, minItems: 2, maxItems: 4 },
  },
  required: ["name", "kind", "year", "tags"],
  additionalProperties: false,
};
const subjects = ["a lighthouse", "a bakery", "an old clock", "a river", "a bridge", "a whale", "a map", "a violin"];

const model = await smollm2();
const report = await chaos({
  startDaemon: (port) => startNativeDaemon(model, port === undefined ? {} : { port }),
  gateway: {
    model: "smollm2",
    tokenizer: `gguf:${model}`,
    // Two cores for three engines and what asks them: slowness is no fault here.
    pool: { deadlines: { firstToken: "5m", betweenTokens: "2m" } },
    modelFields: { resume: { wait: "1m" } },
  },
  ask: (seed) => ({
    messages: [{ role: "user", content: `Invent ${subjects[seed % subjects.length]} and describe it as JSON.` }],
    temperature: 0.9,
    max_completion_tokens: 120,
    response_format: { type: "json_schema", json_schema: { name: "invention", schema, strict: true } },
  }),
  seeds,
  streams,
  kills,
  onKill(kill, { answers, wrong }) {
    process.stdout.write(`kill ${kill}: ${answers} answers so far, ${wrong} wrong\n`);
  },
});

const isValid = new Ajv().compile(schema);
const judged = report.unbroken.map(({ content, finish }) => finish === "stop" && isValid(JSON.parse(content)));
const invalid = judged.filter((valid) => !valid).length;
const machine = {
  cpu: cpus()[0]?.model ?? "unknown",
  cores: cpus().length,
  memoryGiB: Math.round(totalmem() / 2 ** 30),
  node: process.version,
};
const result = { date: new Date().toISOString(), machine, streams, seeds, ...report, invalid };
const ok = report.wrong.length === 0 && invalid === 0 && report.kills >= kills;
await writeFile(join(flags.out, "chaos.json"), `${JSON.stringify(result, undefined, 1)}\n`);
await writeFile(
  join(flags.out, "chaos.md"),
  `# Chaos: daemons killed in the middle of answers

\`node bench/chaos/run.ts --streams ${streams} --kills ${kills}\`, ${result.date}, ${machine.cpu}, ${machine.cores} cores,
${machine.memoryGiB} GiB, Node ${machine.node}; SmolLM2-135M-Instruct (Q4_1), three daemons of one thread, one gateway.

| What | Value |
|---|--:|
| kills (\`kill -9\`, all three daemons ready) | ${report.kills} |
| seconds from the first to the end of the last answer | ${report.seconds.toFixed(0)} |
| streams at once | ${streams} |
| answers given meanwhile | ${report.answers} |
| of them taken on by another daemon in the middle | ${report.resumed} |
| begun again before their first token | ${report.retried} |
| failed, or different from the unbroken answer of the seed | ${report.wrong.length} |
| unbroken answers that ajv refuses, of ${seeds} | ${invalid} |
`,
);
process.stdout.write(
  `${report.kills} kills in ${report.seconds.toFixed(0)} s, ${report.answers} answers, ${report.resumed} resumed, ` +
    `${report.wrong.length} wrong, ${invalid} invalid\n`,
);
for (const each of report.wrong) process.stdout.write(`${each}\n`);
process.exitCode = ok ? 0 : 1;
