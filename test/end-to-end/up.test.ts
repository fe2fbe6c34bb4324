import { exec } from "node:child_process";
import { existsSync } from "node:fs";
import { promisify } from "node:util";
import { Ajv } from "ajv";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { z } from "zod";
import { isAlive, startUp, type Up } from "../support/up.ts";

const person = {
  type: "object",
  properties: {
    name: { type: "string", maxLength: 40 },
    age: { type: "integer", minimum: 0, maximum: 150 },
    city: { type: "string", maxLength: 40 },
  },
  required: ["name", "age", "city"],
  additionalProperties: false,
} as const;

const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather of a city",
    parameters: {
      type: "object",
      properties: { city: { type: "string", maxLength: 40 }, unit: { enum: ["celsius", "fahrenheit"] } },
      required: ["city", "unit"],
      additionalProperties: false,
    },
  },
} as const;

const ajv = new Ajv();

function expectValid(schema: object, json: string): void {
  const validate = ajv.compile(schema);
  validate(JSON.parse(json));
  expect(validate.errors ?? []).toEqual([]);
}

describe("sluice up", () => {
  let up: Up;
  let client: OpenAI;
  let model: string;

  beforeAll(async () => {
    up = await startUp();
    client = new OpenAI({ baseURL: `${up.ready.url}/v1`, apiKey: up.ready.key, maxRetries: 0 });
    model = up.ready.model;
  });

  afterAll(async () => {
    await up?.end();
  });

  const ask = (content: string) => [{ role: "user", content }] as const satisfies OpenAI.ChatCompletionMessageParam[];

  it("runs gateway and daemon as processes of their own", () => {
    const { supervisor, gateway, daemons } = up.ready.pids;
    expect(daemons).toHaveLength(1);
    expect(new Set([supervisor, gateway, ...daemons]).size).toBe(3);
    for (const pid of [supervisor, gateway, ...daemons]) expect(isAlive(pid)).toBe(true);
  });

  it("prints a curl whose answer validates against the schema it names", async () => {
    await expect.poll(() => up.stdout()).toContain("Ctrl-C ends it.");
    const command = /^curl [\s\S]*?'\n/m.exec(up.stdout())?.[0] ?? "";
    expect(command).toContain("json_schema");
    const { stdout } = await promisify(exec)(command);
    const answer = JSON.parse(stdout);
    expect(answer.choices[0].finish_reason).toBe("stop");
    const body = JSON.parse(/-d '(.*)'/s.exec(command)?.[1] ?? "");
    expectValid(body.response_format.json_schema.schema, answer.choices[0].message.content);
  });

  it("answers a chat", async () => {
    const answer = await client.chat.completions.create({
      model,
      messages: ask("What is the capital of France?"),
      temperature: 0,
      max_tokens: 24,
    });
    expect(answer.choices[0]?.message.content).toContain("Paris");
    expect(answer.model).toBe(model);
    expect(answer.usage?.completion_tokens).toBeGreaterThan(0);
    expect(answer.usage?.total_tokens).toBe(
      (answer.usage?.prompt_tokens ?? 0) + (answer.usage?.completion_tokens ?? 0),
    );
  });

  it("streams the same text that it answers in one piece", async () => {
    const request = { model, messages: ask("Name three colours."), temperature: 0, max_tokens: 32, seed: 7 };
    const whole = await client.chat.completions.create(request);
    const stream = await client.chat.completions.create({
      ...request,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "";
    let pieces = 0;
    let usage: OpenAI.CompletionUsage | null | undefined;
    for await (const chunk of stream) {
      const piece = chunk.choices[0]?.delta.content ?? "";
      text += piece;
      if (piece !== "") pieces++;
      usage = chunk.usage ?? usage;
    }
    expect(text).toBe(whole.choices[0]?.message.content);
    expect(pieces).toBeGreaterThan(1);
    expect(usage?.completion_tokens).toBe(whole.usage?.completion_tokens);
  });

  it("counts a repeated prompt as cached", async () => {
    const request = { model, messages: ask(`Repeat after me: ${"one two three four ".repeat(20)}`), max_tokens: 1 };
    await client.chat.completions.create(request);
    const again = await client.chat.completions.create(request);
    expect(again.usage?.prompt_tokens_details?.cached_tokens).toBeGreaterThanOrEqual(64);
  });

  it("answers a json_schema request with JSON that validates", async () => {
    const answer = await client.chat.completions.create({
      model,
      messages: ask("Maria is 34 years old and lives in Lisbon. Describe her as JSON."),
      response_format: { type: "json_schema", json_schema: { name: "person", strict: true, schema: person } },
      temperature: 0,
      max_tokens: 200,
    });
    expect(answer.choices[0]?.finish_reason).toBe("stop");
    expectValid(person, answer.choices[0]?.message.content ?? "");
  });

  it("streams a json_schema answer that validates", async () => {
    const stream = client.chat.completions.stream({
      model,
      messages: ask("Jun is 7 and lives in Seoul. Describe Jun as JSON."),
      response_format: { type: "json_schema", json_schema: { name: "person", strict: true, schema: person } },
      max_tokens: 200,
      seed: 11,
    });
    const answer = await stream.finalChatCompletion();
    expect(answer.choices[0]?.finish_reason).toBe("stop");
    expectValid(person, answer.choices[0]?.message.content ?? "");
  });

  it("serves the client's .parse", async () => {
    const City = z.object({ name: z.string(), population: z.int(), capital: z.boolean() });
    const answer = await client.chat.completions.parse({
      model,
      messages: ask("Paris is the capital of France and has 2100000 inhabitants. Answer as JSON."),
      response_format: zodResponseFormat(City, "city"),
      temperature: 0,
      max_tokens: 256,
    });
    const parsed = answer.choices[0]?.message.parsed;
    expect(typeof parsed?.name).toBe("string");
    expect(Number.isInteger(parsed?.population)).toBe(true);
    expect(typeof parsed?.capital).toBe("boolean");
  });

  it("answers json_object with an object", async () => {
    const answer = await client.chat.completions.create({
      model,
      messages: ask('Answer with the JSON object {"ok": true} and nothing else.'),
      response_format: { type: "json_object" },
      temperature: 0,
      max_tokens: 128,
    });
    if (answer.choices[0]?.finish_reason === "stop") {
      expect(JSON.parse(answer.choices[0].message.content ?? "")).toBeTypeOf("object");
    } else expect(answer.choices[0]?.finish_reason).toBe("length");
  });

  it("calls a tool it is told to call, with arguments that validate", async () => {
    const answer = await client.chat.completions.create({
      model,
      messages: ask("What is the weather in Busan?"),
      tools: [weather],
      tool_choice: { type: "function", function: { name: "get_weather" } },
      temperature: 0,
      max_tokens: 128,
    });
    const choice = answer.choices[0];
    expect(choice?.finish_reason).toBe("tool_calls");
    const call = choice?.message.tool_calls?.[0];
    expect(call?.type).toBe("function");
    if (call?.type !== "function") return;
    expect(call.function.name).toBe("get_weather");
    expectValid(weather.function.parameters, call.function.arguments);
  });

  it("lets the model choose, and whatever it calls validates", async () => {
    const stream = client.chat.completions.stream({
      model,
      messages: ask("What is the weather in Busan, in celsius? Use the tool."),
      tools: [weather],
      tool_choice: "auto",
      temperature: 0,
      max_tokens: 128,
    });
    const choice = (await stream.finalChatCompletion()).choices[0];
    for (const call of choice?.message.tool_calls ?? []) {
      if (call.type === "function" && choice?.finish_reason === "tool_calls") {
        expectValid(weather.function.parameters, call.function.arguments);
      }
    }
    const calls = choice?.message.tool_calls?.length ?? 0;
    expect(calls > 0 ? ["tool_calls", "length"] : ["stop", "length"]).toContain(choice?.finish_reason);
  });

  it("lists its model", async () => {
    const models = await client.models.list();
    expect(models.data.map(({ id }) => id)).toEqual([model]);
    expect((await client.models.retrieve(model)).id).toBe(model);
  });

  it("starts again a daemon that was killed, and answers again", async () => {
    const [before] = up.ready.pids.daemons;
    if (before === undefined) throw new Error("no daemon");
    process.kill(before, "SIGKILL");
    await expect.poll(() => up.stderr(), { timeout: 60_000 }).toContain("runs again");
    const request = { model, messages: ask("Hello"), max_tokens: 4 };
    await expect
      .poll(() => client.chat.completions.create(request).then((answer) => answer.object), { timeout: 60_000 })
      .toBe("chat.completion");
  }, 300_000);
});

describe("the end of sluice up", () => {
  it("starts in seconds, drains a running stream on SIGINT, and leaves no process behind", async () => {
    const up = await startUp();
    expect(up.startMs).toBeLessThan(60_000);
    const client = new OpenAI({ baseURL: `${up.ready.url}/v1`, apiKey: up.ready.key, maxRetries: 0 });
    const stream = await client.chat.completions.create({
      model: up.ready.model,
      messages: [{ role: "user", content: "Tell me a long story." }],
      max_tokens: 64,
      stream: true,
    });
    let finish: string | null | undefined;
    let ended: Promise<number | null> | undefined;
    for await (const chunk of stream) {
      ended ??= up.end("SIGINT");
      finish = chunk.choices[0]?.finish_reason ?? finish;
    }
    expect(["stop", "length"]).toContain(finish);
    expect(await ended).toBe(0);
    const { supervisor, gateway, daemons } = up.ready.pids;
    for (const pid of [supervisor, gateway, ...daemons]) expect(isAlive(pid)).toBe(false);
    expect(existsSync(up.readyPath)).toBe(false);
  }, 300_000);

  it("takes its processes with it when it is killed", async () => {
    const up = await startUp(["--daemons", "2"]);
    const { gateway, daemons } = up.ready.pids;
    expect(daemons).toHaveLength(2);
    process.kill(up.ready.pids.supervisor, "SIGKILL");
    await expect.poll(() => [gateway, ...daemons].filter(isAlive), { timeout: 60_000 }).toEqual([]);
  }, 300_000);
});
