import { describe, expect, test } from "vitest";
import { ToolCallParser, type ToolPart } from "./tool-calls.ts";

const tools = new Set(["weather", "time"]);

function parse(pieces: readonly string[]): { content: string; calls: Array<{ name: string; arguments: string }> } {
  const parser = new ToolCallParser(tools);
  const parts: ToolPart[] = pieces.flatMap((piece) => parser.push(piece));
  parts.push(...parser.finish());
  let content = "";
  const calls: Array<{ name: string; arguments: string }> = [];
  for (const part of parts) {
    if (part.type === "content") content += part.text;
    else if (part.type === "call") calls[part.index] = { name: part.name, arguments: "" };
    else {
      const call = calls[part.index];
      if (call === undefined) throw new Error("arguments before their call");
      call.arguments += part.text;
    }
  }
  return { content, calls };
}

const cases = [
  {
    name: "one call",
    text: '<tool_call>\n{"name": "weather", "arguments": {"city": "Seoul"}}\n</tool_call>',
    content: "",
    calls: [{ name: "weather", arguments: '{"city": "Seoul"}' }],
  },
  {
    name: "words, then two calls",
    text: 'Let me see.\n<tool_call>{"name":"weather","arguments":{}}</tool_call>\n<tool_call>{"name":"time","arguments":{"a":[1,{"b":"}"}]}}</tool_call>',
    content: "Let me see.\n\n",
    calls: [
      { name: "weather", arguments: "{}" },
      { name: "time", arguments: '{"a":[1,{"b":"}"}]}' },
    ],
  },
  {
    name: "braces, quotes and the closing marker inside a string",
    text: '<tool_call>{"name": "time", "arguments": {"q": "a \\"}</tool_call>{ b"}}</tool_call>',
    content: "",
    calls: [{ name: "time", arguments: '{"q": "a \\"}</tool_call>{ b"}' }],
  },
  {
    name: "arguments before the name",
    text: '<tool_call>{"arguments": {"x": 1}, "name": "time"}</tool_call>',
    content: "",
    calls: [{ name: "time", arguments: '{"x":1}' }],
  },
  {
    name: "a tool that was not offered",
    text: '<tool_call>{"name": "rm", "arguments": {}}</tool_call> done',
    content: '<tool_call>{"name": "rm", "arguments": {}}</tool_call> done',
    calls: [],
  },
  { name: "no JSON", text: "<tool_call>hello</tool_call>", content: "<tool_call>hello</tool_call>", calls: [] },
  { name: "a marker that never closes", text: "a <tool_call>{", content: "a <tool_call>{", calls: [] },
  { name: "half a marker", text: "a <tool_", content: "a <tool_", calls: [] },
  {
    name: "a call cut off in its arguments",
    text: '<tool_call>{"name": "time", "arguments": {"zone": "Asi',
    content: "",
    calls: [{ name: "time", arguments: '{"zone": "Asi' }],
  },
];

describe.each([1, 3, 7, 1000])("in pieces of %i", (size) => {
  test.each(cases)("$name", ({ text, content, calls }) => {
    const pieces = Array.from({ length: Math.ceil(text.length / size) }, (_, at) =>
      text.slice(at * size, (at + 1) * size),
    );
    expect(parse(pieces)).toEqual({ content, calls });
  });
});

test("arguments are passed on as they come, not when the call is complete", () => {
  const parser = new ToolCallParser(tools);
  parser.push('<tool_call>{"name": "weather", "arguments": {"ci');
  expect(parser.push('ty": "Se')).toEqual([{ type: "arguments", index: 0, text: 'ty": "Se' }]);
});
