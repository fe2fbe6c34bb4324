import { rm } from "node:fs/promises";
import { join } from "node:path";
import type OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Daemon } from "../../src/backends/daemon/server.ts";
import { startDaemon } from "../../src/backends/daemon/start.ts";
import { type GatewayOverDaemons, startGatewayOver } from "../support/gateway.ts";
import { tinyModel } from "../support/tiny-model.ts";
import { type CuttingProxy, Scissors, startCuttingProxy } from "./cutting-proxy.ts";

const seed = 20_261_123;
const cases = 200;

/** Mulberry32 (Tommy Ettinger, 2017): the same cases each time. */
function randomFrom(start: number): () => number {
  let state = start;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 0x1_0000_0000;
  };
}
const random = randomFrom(seed);
const below = (bound: number): number => Math.floor(random() * bound);
const oneOf = <T>(values: readonly [T, ...T[]]): T => values[below(values.length)] ?? values[0];

type Ask = OpenAI.ChatCompletionCreateParamsNonStreaming & Readonly<Record<string, unknown>>;

const schema = {
  type: "object",
  properties: {
    kind: { enum: ["old", "new", "borrowed"] },
    count: { type: "integer", minimum: 0, maximum: 9999 },
    tags: { type: "array", items: { enum: ["red", "green", "blue"] }, minItems: 1, maxItems: 4 },
  },
  required: ["kind", "count", "tags"],
  additionalProperties: false,
};

function randomAsk(): Ask {
  const sampled = random() < 0.7;
  const constrained = random() < 0.3;
  return {
    model: "tiny",
    messages: [
      { role: "user", content: Array.from({ length: 1 + below(12) }, () => oneOf(["one", "two", "ten"])).join(" ") },
    ],
    max_completion_tokens: 8 + below(100),
    temperature: sampled ? oneOf([0.7, 1, 1.5]) : 0,
    ...(sampled && { seed: below(1_000_000), top_p: oneOf([1, 0.9]), top_k: oneOf([0, 20]) }),
    ...(random() < 0.4 && { repetition_penalty: 1.2 }),
    ...(random() < 0.4 && { presence_penalty: 0.5, frequency_penalty: 0.7 }),
    ...(random() < 0.4 && { logprobs: true, top_logprobs: below(4) }),
    ...(!constrained && random() < 0.3 && { stop: [oneOf(["a", "e", "xq"]) + oneOf(["b", "", "c"])] }),
    ...(constrained && {
      response_format: { type: "json_schema", json_schema: { name: "thing", schema, strict: true } },
    }),
  };
}

/** All that a caller is told, whatever the pieces in which it came. */
interface Told {
  readonly content: string;
  readonly finish: string | null | undefined;
  readonly logprobs: unknown;
  readonly completionTokens: number | undefined;
  readonly promptTokens: number | undefined;
}

describe("an answer of the real engine whose connection is cut", () => {
  let model: string;
  let daemons: Daemon[];
  let proxies: CuttingProxy[];
  let gateway: GatewayOverDaemons;
  let openai: OpenAI;
  const scissors = new Scissors(random);

  beforeAll(async () => {
    model = await tinyModel();
    const options = { model, port: 0, precision: "exact", threads: 1, kvTokens: 4096, maxRows: 8 } as const;
    daemons = [await startDaemon(options), await startDaemon(options)];
    proxies = await Promise.all(daemons.map(({ url }) => startCuttingProxy(url, scissors)));
    gateway = await startGatewayOver({
      model: "tiny",
      tokenizer: `file:${join(model, "tokenizer.json")}`,
      daemons: proxies,
      // Hundreds of cuts before a first token, in a row, are this test's doing.
      pool: { breaker: { failures: 1000 } },
    });
    openai = gateway.openai;
  });
  afterAll(async () => {
    await gateway.close(0);
    for (const each of [...proxies, ...daemons]) await each.close();
    await rm(model, { recursive: true });
  });

  async function whole(ask: Ask): Promise<Told> {
    const answer = await openai.chat.completions.create(ask);
    const [choice] = answer.choices;
    return {
      content: choice?.message.content ?? "",
      finish: choice?.finish_reason,
      logprobs: choice?.logprobs?.content ?? [],
      completionTokens: answer.usage?.completion_tokens,
      promptTokens: answer.usage?.prompt_tokens,
    };
  }

  async function streamed(ask: Ask): Promise<Told> {
    const told = { content: "", finish: undefined as Told["finish"], logprobs: [] as unknown[] };
    let usage: OpenAI.CompletionUsage | null | undefined;
    const options = { ...ask, stream: true, stream_options: { include_usage: true } } as const;
    for await (const chunk of await openai.chat.completions.create(options)) {
      const [choice] = chunk.choices;
      told.content += choice?.delta.content ?? "";
      told.finish = choice?.finish_reason ?? told.finish;
      told.logprobs.push(...(choice?.logprobs?.content ?? []));
      usage = chunk.usage ?? usage;
    }
    return { ...told, completionTokens: usage?.completion_tokens, promptTokens: usage?.prompt_tokens };
  }

  it(`is token for token the unbroken one: ${cases} random requests, cut at random bytes`, async () => {
    let cuts = 0;
    let structured = 0;
    for (let number = 0; number < cases; number++) {
      const ask = randomAsk();
      scissors.arm([]);
      const unbroken = await whole(ask);
      const tokens = unbroken.completionTokens ?? 0;
      // One cut, or several: each in what is left, the last often behind the last token.
      scissors.arm(Array.from({ length: 1 + below(3) }, () => below(Math.max(1, Math.ceil(tokens / 2)))));
      const broken = await (number % 2 === 0 ? streamed(ask) : whole(ask));
      expect(broken, `case ${number} of seed ${seed}: ${JSON.stringify(ask)}`).toEqual(unbroken);
      cuts += scissors.cuts;
      if (ask.response_format !== undefined && broken.finish === "stop") structured++;
    }
    // Some plans reach behind the end of their answer; a test without cuts would show nothing.
    expect(cuts).toBeGreaterThan(cases);
    expect(structured).toBeGreaterThan(10);
    for (const { engine } of daemons) expect(engine.integrity()).toMatchObject({ ok: true });
  }, 600_000);
});
