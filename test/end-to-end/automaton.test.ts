import { Ajv } from "ajv";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Pair, startPair } from "../support/pair.ts";

let pair: Pair;
beforeAll(async () => {
  pair = await startPair({}, { grammar: { engine: "automaton" } });
});
afterAll(() => pair.close());

const person = {
  type: "object",
  properties: {
    name: { type: "string", minLength: 1, maxLength: 24 },
    born: { type: "string", format: "date" },
    age: { type: "integer", minimum: 0, maximum: 120 },
    languages: { type: "array", items: { enum: ["en", "fr", "de"] }, uniqueItems: true, minItems: 1 },
    address: {
      anyOf: [
        { type: "null" },
        {
          type: "object",
          properties: { street: { type: "string", maxLength: 20 }, zip: { type: "string", pattern: "^[0-9]{5}$" } },
          required: ["zip"],
          additionalProperties: false,
        },
      ],
    },
  },
  required: ["name", "born", "age", "languages", "address"],
  additionalProperties: false,
};

test("at temperature 1 every answer that ends by itself is valid", { timeout: 300_000 }, async () => {
  const valid = new Ajv({ strict: false, formats: { date: /^\d{4}-\d{2}-\d{2}$/ } }).compile(person);
  const answers = await Promise.all(
    Array.from({ length: 8 }, (_, seed) =>
      pair.gateway.openai.chat.completions.create({
        model: pair.model,
        messages: [{ role: "user", content: "Invent a person. Answer in JSON." }],
        temperature: 1,
        seed,
        max_completion_tokens: 200,
        response_format: { type: "json_schema", json_schema: { name: "person", schema: person } },
      }),
    ),
  );
  const ended = answers.filter(({ choices }) => choices[0]?.finish_reason === "stop");
  // Everything in the schema is bounded, so nothing keeps an answer from its end.
  expect(ended).toHaveLength(8);
  for (const { choices } of ended) {
    const text = choices[0]?.message.content ?? "";
    expect(valid(JSON.parse(text)), text).toBe(true);
  }
});

test("what cannot be guaranteed is a 400 that names the keyword's path", async () => {
  const refused = pair.gateway.openai.chat.completions.create({
    model: pair.model,
    messages: [{ role: "user", content: "x" }],
    response_format: {
      type: "json_schema",
      json_schema: {
        name: "x",
        schema: { type: "object", properties: { a: { type: "array", contains: { type: "string" } } } },
      },
    },
  });
  await expect(refused).rejects.toMatchObject({
    status: 400,
    code: "unsupported_schema",
    param: "response_format.json_schema.schema/properties/a/contains",
  });
});

test("tool calls, which XGrammar compiles, work beside it", { timeout: 120_000 }, async () => {
  const answer = await pair.gateway.openai.chat.completions.create({
    model: pair.model,
    messages: [{ role: "user", content: "What is the weather in Rome?" }],
    tools: [
      {
        type: "function",
        function: {
          name: "weather",
          parameters: {
            type: "object",
            properties: { city: { enum: ["Rome", "Oslo"] } },
            required: ["city"],
            additionalProperties: false,
          },
        },
      },
    ],
    tool_choice: "required",
    parallel_tool_calls: false,
    max_completion_tokens: 100,
  });
  const call = answer.choices[0]?.message.tool_calls?.[0];
  expect(call?.type === "function" ? JSON.parse(call.function.arguments) : undefined).toHaveProperty("city");
});
