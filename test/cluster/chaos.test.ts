import { createHash } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import OpenAI from "openai";
import { afterAll, beforeAll, expect, it } from "vitest";
import { configSchema } from "../../src/config/schema.ts";
import { type RunningGateway, startGateway } from "../../src/gateway/platform/node.ts";
import { type DaemonProcess, startNativeDaemon } from "./daemons.ts";
import { tinyModel } from "./tiny-model.ts";

const key = "sk-chaos";
const streams = 64;
const kills = 20;
const paceMs = 4;

const schema = {
  type: "object",
  properties: {
    kinds: { type: "array", items: { enum: ["old", "new", "borrowed", "blue"] }, minItems: 4, maxItems: 8 },
    count: { type: "integer", minimum: 0, maximum: 999_999 },
    open: { type: "boolean" },
  },
  required: ["kinds", "count", "open"],
  additionalProperties: false,
};
const ask = (seed: number): OpenAI.ChatCompletionCreateParamsStreaming => ({
  model: "tiny",
  messages: [{ role: "user", content: `Tell me of thing ${seed}.` }],
  seed,
  temperature: 1,
  max_completion_tokens: 180,
  response_format: { type: "json_schema", json_schema: { name: "thing", schema, strict: true } },
  stream: true,
  stream_options: { include_usage: true },
});

let model: string;
let daemons: DaemonProcess[];
let gateway: RunningGateway;
let openai: OpenAI;

beforeAll(async () => {
  model = await tinyModel();
  daemons = await Promise.all([0, 1, 2].map(() => startNativeDaemon(model, { paceMs })));
  const ready = Promise.withResolvers<void>();
  gateway = await startGateway({
    config: configSchema.parse({
      listen: { port: 0 },
      models: { tiny: { pools: ["all"], tokenizer: `file:${join(model, "tokenizer.json")}` } },
      pools: {
        all: {
          backend: "daemon",
          endpoints: daemons.map(({ url }) => url),

          deadlines: { firstToken: "20s", betweenTokens: "20s" },
        },
      },
      tenants: { t: { keys: [`sha256:${createHash("sha256").update(key).digest("hex")}`] } },
    }),
    write: () => {},
    onReady: ready.resolve,
  });
  await ready.promise;
  openai = new OpenAI({ apiKey: key, baseURL: `${gateway.url}/v1`, maxRetries: 0 });
});
afterAll(async () => {
  await gateway.close(0);
  for (const daemon of daemons) await daemon.kill();
  await rm(model, { recursive: true });
});

async function told(seed: number, onText: () => void = () => {}): Promise<string> {
  let content = "";
  let end = "";
  for await (const chunk of await openai.chat.completions.create(ask(seed))) {
    const [choice] = chunk.choices;
    content += choice?.delta.content ?? "";
    if (choice?.delta.content) onText();
    if (choice?.finish_reason) end = choice.finish_reason;
    if (chunk.usage) end += ` ${chunk.usage.prompt_tokens}+${chunk.usage.completion_tokens}`;
  }
  return `${content} ${end}`;
}

async function openAnswers({ url }: DaemonProcess): Promise<number> {
  const metrics = await (await fetch(`${url}/metrics`)).text();
  return Number(/^sluice_daemon_open_answers (\d+)/m.exec(metrics)?.[1] ?? 0);
}

it(`${streams} constrained streams outlive ${kills} kills of a random daemon: each is the unbroken answer`, async () => {
  const seeds = Array.from({ length: 16 }, (_, seed) => seed);
  const unbroken = await Promise.all(seeds.map((seed) => told(seed)));
  for (const answer of unbroken) expect(answer).toMatch(/^\{.*\} stop \d+\+\d+$/);

  let done = false;
  let answers = 0;
  let pieces = 0;
  let came = () => {};
  const morePieces = async (count: number) => {
    const enough = pieces + count;
    while (pieces < enough) {
      await new Promise<void>((resolve) => {
        came = resolve;
      });
    }
  };
  const wrong: string[] = [];
  const workers = Array.from({ length: streams }, async (_, worker) => {
    for (let turn = worker; !done; turn++) {
      const seed = turn % seeds.length;
      const answer = await told(seed, () => {
        pieces++;
        came();
      }).catch((error: unknown) => `failed: ${String(error)}`);
      answers++;
      if (answer !== unbroken[seed]) wrong.push(`seed ${seed}: ${answer}`);
    }
  });
  for (let kill = 0; kill < kills; kill++) {
    const index = Math.floor(Math.random() * 3);
    const victim = daemons[index];
    if (victim === undefined) throw new Error("there are three");
    // All three are ready by now; this one is in the middle of several answers again.
    do await morePieces(40);
    while ((await openAnswers(victim)) < 4);
    await victim.kill();
    daemons[index] = await startNativeDaemon(model, { paceMs, port: Number(new URL(victim.url).port) });
  }
  done = true;
  await Promise.all(workers);
  expect(wrong).toEqual([]);
  expect(answers).toBeGreaterThan(streams);
  const metrics = await (await fetch(`${gateway.url}/metrics`)).text();
  const resumed = Number(/sluice_retried_total\{model="tiny",when="resumed"\} (\d+)/.exec(metrics)?.[1] ?? 0);
  // Each kill meets at least four open answers, most of them in the middle.
  expect(resumed).toBeGreaterThan(kills);
}, 240_000);
