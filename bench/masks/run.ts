/**
 * The grammar path alone, over real schemas: how many are accepted, whether any grammar lets an invalid instance through,
 * what compiling and masks cost.
 *
 *     node bench/masks/run.ts --data DIR [--schemas 200] [--seed 1] [--walks 0] [--tokenizer gguf:PATH] [--out FILE]
 *
 * DIR holds maskbench/*.jsonl. For each schema: front end, compilation, and each instance token by token (mask bit before
 * each accept, an end token allowed after the last). `--walks N` also writes N random answers a schema by the masks alone
 * and lets ajv judge them. One thread; times are wall time of this process. Exit code 1 on a false accept or a lying mask.
 */
import { writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { DEFAULT_SCHEMA_BUDGET } from "../../src/grammar/budget.ts";
import { DEFAULT_POLICY, policyText } from "../../src/grammar/policy.ts";
import type { GrammarPolicy } from "../../src/grammar/grammar.ts";
import { COMPILER_VERSION, prepareGrammar, RequestRefusal } from "../../src/grammar/prepare.ts";
import { GrammarBench } from "../../src/grammar/xgrammar-testing.ts";
import { grammarVocabulary } from "../../src/grammar/vocabulary.ts";
import { resolveModel } from "../../src/models/index.ts";
import { openTokenizer } from "../../src/tokenizer/node.ts";
import { judge } from "../schemas/judge.ts";
import { type Case, drawCases, seeded } from "./cases.ts";

const { values: options } = parseArgs({
  options: {
    data: { type: "string" },
    schemas: { type: "string", default: "200" },
    seed: { type: "string", default: "1" },
    walks: { type: "string", default: "0" },
    whitespace: { type: "string", default: "" },
    tokenizer: { type: "string" },
    out: { type: "string" },
    verbose: { type: "boolean", default: false },
  },
});
if (options.data === undefined) {
  process.stderr.write(
    "usage: node bench/masks/run.ts --data DIR [--schemas 200] [--seed 1] [--walks 0] [--whitespace MAX] [--out FILE] [--verbose]\n",
  );
  process.exit(2);
}

const WALK_TOKENS = 400;
const reference =
  options.tokenizer ?? `gguf:${(await resolveModel("smollm2", { signal: AbortSignal.timeout(600_000) })).path}`;
const tokenizer = await openTokenizer(reference);
const bench = new GrammarBench(grammarVocabulary(tokenizer.vocabulary));
const stopIds = new Set(tokenizer.vocabulary.stopIds);
const stopId = tokenizer.vocabulary.stopIds[0] ?? -1;
const policy: GrammarPolicy =
  options.whitespace === ""
    ? DEFAULT_POLICY
    : { ...DEFAULT_POLICY, whitespace: { kind: "bounded", max: Number(options.whitespace) } };
const structural = Array.from({ length: tokenizer.vocabulary.size }, (_, id) =>
  /["}\],]/.test(tokenizer.tokenText(id)),
);
const next = seeded(Number(options.seed) + 1);

const compileMs: number[] = [];
const frontMs: number[] = [];
const maskUs: number[] = [];
const artifactBytes: number[] = [];
const refusals = new Map<string, string[]>();
const faults: string[] = [];
const count = {
  accepted: 0,
  refused: 0,
  compileErrors: 0,
  falseAccepts: 0,
  falseRejects: 0,
  schemasWithFalseRejects: 0,
  instances: 0,
  walks: 0,
  walksCut: 0,
  walksInvalid: 0,
  walksUnjudged: 0,
};

function timed<T>(into: number[], scale: number, work: () => T): T {
  const begun = performance.now();
  const result = work();
  into.push((performance.now() - begun) * scale);
  return result;
}

/** True when every token is allowed and the whole may end. */
function admits(artifact: Uint8Array, text: string, id: string): boolean {
  const matcher = bench.matcher(artifact);
  const mask = new Uint32Array(Math.ceil(bench.vocabularySize / 32));
  for (const token of tokenizer.encode(text)) {
    timed(maskUs, 1000, () => matcher.fillMask(mask));
    const allowed = bench.allows(mask, token);
    if (matcher.accept(token) !== allowed)
      faults.push(`${id}: mask and matcher disagree on ${JSON.stringify(tokenizer.tokenText(token))}`);
    if (!allowed) return false;
  }
  matcher.fillMask(mask);
  return bench.allows(mask, stopId);
}

/** A random allowed token; the longer the answer already is, the likelier one that closes something. */
function pick(mask: Uint32Array, length: number): number | undefined {
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
  const mask = new Uint32Array(Math.ceil(bench.vocabularySize / 32));
  const tokens: number[] = [];
  let ended = false;
  while (!ended && tokens.length < WALK_TOKENS) {
    matcher.fillMask(mask);
    const token = bench.allows(mask, stopId) && next() < 0.7 ? undefined : pick(mask, tokens.length);
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
  const source = { kind: "json_schema", schema: one.schema, strict: false } as const;
  const begun = performance.now();
  let artifact: Uint8Array;
  try {
    const prepared = timed(frontMs, 1, () => prepareGrammar(source, policy, DEFAULT_SCHEMA_BUDGET));
    artifact = await bench.compileText(prepared.kind, prepared.text);
  } catch (error) {
    if (error instanceof RequestRefusal) {
      count.refused++;
      const why = `${error.refusal.code}: ${error.message}`;
      refusals.set(why, [...(refusals.get(why) ?? []), `${one.id} ${error.refusal.path}`]);
    } else {
      count.compileErrors++;
      faults.push(`${one.id}: ${error instanceof Error ? error.message : String(error)}`);
    }
    return;
  }
  compileMs.push(performance.now() - begun);
  artifactBytes.push(artifact.byteLength);
  count.accepted++;
  let rejected = false;
  for (const { valid, text } of one.instances) {
    count.instances++;
    const admitted = admits(artifact, text, one.id);
    if (admitted && !valid) {
      count.falseAccepts++;
      faults.push(`${one.id}: false accept of ${text.slice(0, 200)}`);
    } else if (!admitted && valid) {
      count.falseRejects++;
      rejected = true;
    }
  }
  if (rejected) count.schemasWithFalseRejects++;
  for (let i = 0; i < Number(options.walks); i++) walk(artifact, one);
}

function quantiles(values: readonly number[]): Record<string, number> {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (part: number) =>
    Number((sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] ?? Number.NaN).toPrecision(4));
  return { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1) };
}

for (const one of drawCases(options.data, Number(options.schemas), Number(options.seed))) await run(one);

const report = {
  machine: cpus()[0]?.model,
  compiler: COMPILER_VERSION,
  policy: policyText(policy),
  vocabulary: tokenizer.vocabulary.size,
  schemas: Number(options.schemas),
  seed: Number(options.seed),
  acceptedPercent: Number(((100 * count.accepted) / Number(options.schemas)).toFixed(1)),
  ...count,
  frontMs: quantiles(frontMs),
  compileMs: quantiles(compileMs),
  maskUs: quantiles(maskUs),
  artifactBytes: quantiles(artifactBytes),
  refusals: [...refusals]
    .sort(([, a], [, b]) => b.length - a.length)
    .map(([why, ids]) => ({ why, count: ids.length, first: ids[0] })),
  faults,
};
process.stdout.write(
  `${JSON.stringify(options.verbose ? { ...report, refused: Object.fromEntries(refusals) } : report, undefined, 2)}\n`,
);
if (options.out !== undefined) writeFileSync(options.out, `${JSON.stringify(report, undefined, 2)}\n`);
if (count.falseAccepts > 0 || count.walksInvalid > 0 || faults.length > 0) process.exitCode = 1;
