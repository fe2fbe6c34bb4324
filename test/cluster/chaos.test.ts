import { rm } from "node:fs/promises";
import { join } from "node:path";
import { Ajv } from "ajv";
import { afterAll, beforeAll, expect, it } from "vitest";
import { chaos } from "../support/chaos.ts";
import { startNativeDaemon } from "../support/daemons.ts";
import { tinyModel } from "../support/tiny-model.ts";

const streams = 64;
const kills = 20;

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

let model: string;
beforeAll(async () => {
  model = await tinyModel();
});
afterAll(() => rm(model, { recursive: true }));

it(`${streams} constrained streams outlive ${kills} kills of a random daemon: each is the unbroken answer`, async () => {
  const { unbroken, answers, wrong, resumed } = await chaos({
    startDaemon: (port) => startNativeDaemon(model, { paceMs: 4, ...(port !== undefined && { port }) }),
    gateway: {
      model: "tiny",
      tokenizer: `file:${join(model, "tokenizer.json")}`,
      pool: { deadlines: { firstToken: "60s", betweenTokens: "60s" } },
      modelFields: { resume: { wait: "60s" } },
    },
    ask: (seed) => ({
      messages: [{ role: "user", content: `Tell me of thing ${seed}.` }],
      temperature: 1,
      max_completion_tokens: 180,
      response_format: { type: "json_schema", json_schema: { name: "thing", schema, strict: true } },
    }),
    seeds: 16,
    streams,
    kills,
  });
  const isValid = new Ajv().compile(schema);
  for (const { content, finish } of unbroken) {
    expect(finish).toBe("stop");
    expect(isValid(JSON.parse(content))).toBe(true);
  }
  expect(wrong).toEqual([]);
  expect(answers).toBeGreaterThan(streams);
  expect(resumed).toBeGreaterThanOrEqual(kills);
}, 600_000);
