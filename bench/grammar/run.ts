/**
 * The grammar path alone: what a grammar engine accepts, lets through that it should not, and costs.
 *
 *     node bench/grammar/run.ts --data DIR [--engine automaton | xgrammar] [--set maskbench | jsts | hostile]
 *       [--count 600] [--seed 1] [--order schema | any] [--walks 0]
 *       [--repeat 1] [--tokenizer gguf:PATH | file:PATH] [--out FILE] [--verbose]
 *
 * For each schema: compilation, then each instance token by token (mask bit before each accept, an end token allowed after
 * the last). Masks are filled with nothing remembered of other schemas. `--order any` lets members come in any order and
 * unlisted ones where the schema is silent, as validators do; `schema` is what answers are written with. `--walks N` also
 * writes N random answers a schema by the masks alone and lets ajv judge them. One thread; times are wall time of this
 * process. `--repeat N` goes N times through each instance, each time with nothing remembered, and keeps the shortest time of
 * each mask: on a machine that does other work as well, the longest times are else those of being interrupted. Exit code 1 on a false accept, a dead end or a mask that lies.
 */
import { writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import type { GrammarPolicy } from "../../src/grammar/grammar.ts";
import { DEFAULT_POLICY } from "../../src/grammar/policy.ts";
import { grammarVocabulary } from "../../src/grammar/vocabulary.ts";
import { GrammarBench } from "../../src/grammar/xgrammar-testing.ts";
import { resolveModel } from "../../src/models/index.ts";
import { openTokenizer } from "../../src/tokenizer/node.ts";
import { judge } from "../schemas/judge.ts";
import { type Case, readCases, SETS, seeded } from "./cases.ts";
import { ENGINES, openEngine } from "./engines.ts";

const { values: options } = parseArgs({
  options: {
    data: { type: "string" },
    engine: { type: "string", default: "automaton" },
    set: { type: "string", default: "maskbench" },
    count: { type: "string", default: "600" },
    seed: { type: "string", default: "1" },
    order: { type: "string", default: "schema" },
    walks: { type: "string", default: "0" },
    repeat: { type: "string", default: "1" },
    tokenizer: { type: "string" },
    out: { type: "string" },
    verbose: { type: "boolean", default: false },
  },
});
const engineName = ENGINES.find((name) => name === options.engine);
const set = SETS.find((name) => name === options.set);
if (options.data === undefined || engineName === undefined || set === undefined) {
  process.stderr.write(
    "usage: node bench/grammar/run.ts --data DIR [--engine automaton|xgrammar] [--set maskbench|jsts|hostile] [--count 600]\n" +
      "       [--seed 1] [--order schema|any] [--walks 0] [--repeat 1] [--tokenizer gguf:PATH|file:PATH] [--out FILE] [--verbose]\n",
  );
  process.exit(2);
}

const WALK_TOKENS = 400;
const reference =
  options.tokenizer ?? `gguf:${(await resolveModel("smollm2", { signal: AbortSignal.timeout(600_000) })).path}`;
const tokenizer = await openTokenizer(reference);
const bench = new GrammarBench(grammarVocabulary(tokenizer.vocabulary));
const compile = openEngine(engineName, bench);
const policy: GrammarPolicy = { ...DEFAULT_POLICY, propertyOrder: options.order === "any" ? "any" : "schema" };
const stopIds = new Set(tokenizer.vocabulary.stopIds);
const stopId = tokenizer.vocabulary.stopIds[0] ?? -1;
const mask = new Uint32Array(Math.ceil(bench.vocabularySize / 32));
const structural = Array.from({ length: tokenizer.vocabulary.size }, (_, id) =>
  /["}\],]/.test(tokenizer.tokenText(id)),
);
const next = seeded(Number(options.seed) + 1);

const compileMs: number[] = [];
const refuseMs: number[] = [];
const maskUs: number[] = [];
const wholeMs: number[] = [];
const artifactBytes: number[] = [];
const slow: Array<{ readonly id: string; readonly us: number; readonly after: string }> = [];
const refusals = new Map<string, string[]>();
const faults: string[] = [];
const rejects: string[] = [];
const count = {
  accepted: 0,
  refused: 0,
  failed: 0,
  passed: 0,
  falseAccepts: 0,
  falseRejects: 0,
  instances: 0,
  testsRight: 0,
  testsRefused: 0,
  walks: 0,
  walksCut: 0,
  walksInvalid: 0,
  walksUnjudged: 0,
};

function timedMask(matcher: { fillMask(into: Uint32Array): boolean }): number {
  const begun = performance.now();
  matcher.fillMask(mask);
  return (performance.now() - begun) * 1000;
}

/** True when every token is allowed and the whole may end; the times of its masks are added to `times`, or shorten them. */
function admits(artifact: Uint8Array, text: string, id: string, times: number[]): boolean {
  const matcher = bench.matcher(artifact);
  const tokens = [...tokenizer.encode(text)];
  for (let at = 0; at <= tokens.length; at++) {
    const us = timedMask(matcher);
    times[at] = Math.min(times[at] ?? Number.POSITIVE_INFINITY, us);
    const token = tokens[at];
    if (token === undefined) break;
    const allowed = bench.allows(mask, token);
    if (matcher.accept(token) !== allowed)
      faults.push(`${id}: mask and matcher disagree on ${JSON.stringify(tokenizer.tokenText(token))}`);
    if (!allowed) return false;
  }
  return bench.allows(mask, stopId);
}

/** `admits` as often as asked for; its shortest times go into the statistics. */
function measured(artifact: Uint8Array, text: string, id: string): boolean {
  const times: number[] = [];
  let admitted = admits(artifact, text, id, times);
  // A copy is another artifact: nothing is remembered of this one.
  for (let i = 1; i < Number(options.repeat); i++) admitted = admits(artifact.slice(), text, id, times);
  maskUs.push(...times);
  for (const [at, us] of times.entries()) {
    if (us < 1000) continue;
    const after = tokenizer.decode([...tokenizer.encode(text)].slice(0, at)).slice(-60);
    slow.push({ id, us: Math.round(us), after });
  }
  return admitted;
}

/** A random allowed token; the longer the answer already is, the likelier one that closes something. */
function pick(length: number): number | undefined {
  const size = bench.vocabularySize;
  const closing = next() < Math.min(0.95, 0.3 + length / 80);
  for (let tries = 0; tries < 200; tries++) {
    const token = Math.floor(next() * size);
    if (!stopIds.has(token) && bench.allows(mask, token) && (!closing || structural[token] === true)) return token;
  }
  const start = Math.floor(next() * size);
  for (const wanted of closing ? [true, false] : [false]) {
    for (let i = 0; i < size; i++) {
      const token = (start + i) % size;
      if (!stopIds.has(token) && bench.allows(mask, token) && (!wanted || structural[token] === true)) return token;
    }
  }
  return undefined;
}

function walk(artifact: Uint8Array, { id, schema }: Case): void {
  const matcher = bench.matcher(artifact);
  const tokens: number[] = [];
  let ended = false;
  while (!ended && tokens.length < WALK_TOKENS) {
    timedMask(matcher);
    const token = bench.allows(mask, stopId) && next() < 0.7 ? undefined : pick(tokens.length);
    if (token === undefined) {
      if (!bench.allows(mask, stopId)) faults.push(`${id}: dead end after ${tokenizer.decode(tokens).slice(-80)}`);
      ended = true;
    } else if (matcher.accept(token)) tokens.push(token);
    else {
      faults.push(`${id}: the mask allowed a token that the matcher refused`);
      return;
    }
  }
  count.walks++;
  if (!ended) {
    count.walksCut++;
    return;
  }
  const text = tokenizer.decode(tokens);
  const verdict = judge(schema, text);
  if (verdict.kind === "unjudged") count.walksUnjudged++;
  if (verdict.kind !== "invalid") return;
  count.walksInvalid++;
  faults.push(`${id}: a walk is invalid (${verdict.why}): ${text.slice(0, 200)}`);
}

async function run(one: Case): Promise<void> {
  const begun = performance.now();
  const compiled = await compile(one.schema, policy);
  const ms = performance.now() - begun;
  if (compiled.kind !== "artifact") {
    count[compiled.kind]++;
    count.testsRefused += one.instances.length;
    refuseMs.push(ms);
    if (compiled.kind === "failed") faults.push(`${one.id}: ${compiled.why}`);
    const why = compiled.why.replace(/^\S* /, "");
    refusals.set(why, [...(refusals.get(why) ?? []), one.id]);
    return;
  }
  compileMs.push(ms);
  artifactBytes.push(compiled.bytes.byteLength);
  count.accepted++;
  let right = true;
  for (const { valid, text } of one.instances) {
    count.instances++;
    const before = maskUs.length;
    const admitted = measured(compiled.bytes, text, one.id);
    if (valid && admitted) wholeMs.push(ms + maskUs.slice(before).reduce((sum, us) => sum + us, 0) / 1000);
    if (admitted === valid) count.testsRight++;
    else right = false;
    if (admitted && !valid) {
      count.falseAccepts++;
      faults.push(`${one.id}: false accept of ${text.slice(0, 200)}`);
    } else if (!admitted && valid) {
      count.falseRejects++;
      rejects.push(`${one.id}: ${text.slice(0, 200)}`);
    }
  }
  if (right) count.passed++;
  for (let i = 0; i < Number(options.walks); i++) walk(compiled.bytes, one);
}

function quantiles(values: readonly number[]): Record<string, number> {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (part: number) =>
    Number((sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] ?? Number.NaN).toPrecision(4));
  const mean = Number((sorted.reduce((sum, value) => sum + value, 0) / Math.max(1, sorted.length)).toPrecision(4));
  return { mean, p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1) };
}

const cases = readCases(options.data, set, Number(options.count), Number(options.seed));
for (const one of cases) await run(one);

const report = {
  machine: cpus()[0]?.model,
  engine: engineName,
  set,
  schemas: cases.length,
  seed: Number(options.seed),
  order: policy.propertyOrder,
  vocabulary: tokenizer.vocabulary.size,
  passedPercent: Number(((100 * count.passed) / Math.max(1, cases.length)).toFixed(1)),
  testsRightPercent: Number(((100 * count.testsRight) / Math.max(1, count.instances + count.testsRefused)).toFixed(1)),
  ...count,
  compileMs: quantiles(compileMs),
  refuseMs: quantiles(refuseMs),
  maskUs: quantiles(maskUs),
  wholeInstanceMs: quantiles(wholeMs),
  artifactBytes: quantiles(artifactBytes),
  refusals: [...refusals]
    .sort(([, a], [, b]) => b.length - a.length)
    .map(([why, ids]) => ({ why, count: ids.length, first: ids[0] })),
  slowest: slow.sort((a, b) => b.us - a.us).slice(0, 10),
  faults,
};
process.stdout.write(`${JSON.stringify(options.verbose ? { ...report, rejects } : report, undefined, 2)}\n`);
if (options.out !== undefined) writeFileSync(options.out, `${JSON.stringify(report, undefined, 2)}\n`);
if (count.falseAccepts > 0 || faults.length > 0) process.exitCode = 1;
