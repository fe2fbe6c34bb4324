import { expect, test } from "vitest";
import { byteVocabulary, GrammarBench } from "./xgrammar-testing.ts";
import { type ToolGrammarInput, toolGrammar } from "./tools.ts";

const weather = {
  function: {
    name: "weather",
    parameters: { type: "object", properties: { city: { type: "string", maxLength: 8 } }, required: ["city"] },
  },
  strict: false,
};
const time = { function: { name: "time" }, strict: false };
const call = (name: string, args: string) => `<tool_call>\n{"name": "${name}", "arguments": ${args}}\n</tool_call>`;
const seoul = call("weather", '{"city": "Seoul"}');
const now = call("time", "{}");

const bench = new GrammarBench(byteVocabulary());

async function allowed(
  choice: ToolGrammarInput["choice"],
  parallel: boolean,
  texts: readonly string[],
): Promise<boolean[]> {
  const source = toolGrammar({ tools: [weather, time], choice, parallel });
  if (source === undefined) throw new Error("no grammar");
  const artifact = await bench.compile(source);
  return texts.map((text) => bench.matches(artifact, text));
}

test("auto allows free text, and every call that begins keeps to its function", async () => {
  const texts = [
    "Hello.",
    "",
    seoul,
    `Let me see. ${seoul}\n${now}`,
    "a < b",
    call("weather", '{"city": 5}'),
    call("weather", "{}"),
    call("other", "{}"),
  ];
  expect(await allowed("auto", true, texts)).toEqual([true, true, true, true, true, false, false, false]);
});

test("required allows calls and nothing else, one or several", async () => {
  const texts = ["Hello.", "", seoul, `${seoul}\n${now}`, `${seoul} and`];
  expect(await allowed("required", true, texts)).toEqual([false, false, true, true, false]);
  expect(await allowed("required", false, texts)).toEqual([false, false, true, false, false]);
});

test("a named function is called once", async () => {
  const choice = { function: { name: "time" } };
  expect(await allowed(choice, true, [now, seoul, `${now}\n${now}`, "x"])).toEqual([true, false, false, false]);
});

test("none constrains nothing, and a function that is not there is a 400", () => {
  expect(toolGrammar({ tools: [weather], choice: "none", parallel: true })).toBeUndefined();
  expect(() => toolGrammar({ tools: [weather], choice: { function: { name: "x" } }, parallel: true })).toThrow(
    "'x' is not among the tools",
  );
});

test("a tool's schema is refused under its own place in the request", async () => {
  const bad = {
    function: { name: "bad", parameters: { type: "object", properties: { a: { contains: {} } } } },
    strict: false,
  };
  const source = toolGrammar({ tools: [time, bad], choice: "auto", parallel: true });
  if (source === undefined) throw new Error("no grammar");
  await expect(bench.compile(source)).rejects.toMatchObject({
    param: "tools[1].function.parameters/properties/a/contains",
  });
});
