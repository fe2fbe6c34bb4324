import { describe, expect, it } from "vitest";
import { type SseEvent, SseParser } from "./sse.ts";

const bytes = (text: string) => new TextEncoder().encode(text);

function parse(chunks: Iterable<Uint8Array>, maxEventLength = 1_000): SseEvent[] {
  const parser = new SseParser(maxEventLength);
  return [...chunks].flatMap((chunk) => parser.push(chunk));
}
const message = (data: string): SseEvent => ({ event: "message", data });

const stream = [
  "\uFEFF: keep-alive\r\n",
  'data: {"a":1}\r\n\r\n',
  "event: two\r\ndata: one\r\ndata: two\r\n\r\n",
  "event: error\ndata:no space\n\n",
  "data: first\ndata:  second\ndata\n\n",
  ":\n\n",
  "event: without data\n\n",
  "id: 7\rretry: 10\rdata: 한글 🦦\r\r",
  "dat: no such field\ndata: [DONE]\n\n",
].join("");
const expected = [
  message('{"a":1}'),
  { event: "two", data: "one\ntwo" },
  { event: "error", data: "no space" },
  message("first\n second\n"),
  message("한글 🦦"),
  message("[DONE]"),
];

describe("the events of a stream do not depend on how it is cut", () => {
  it("in one piece", () => expect(parse([bytes(stream)])).toEqual(expected));
  it("byte by byte", () => expect(parse(Array.from(bytes(stream), (byte) => Uint8Array.of(byte)))).toEqual(expected));
  it("at any one place", () => {
    const whole = bytes(stream);
    for (let at = 0; at <= whole.length; at++) {
      expect(parse([whole.subarray(0, at), whole.subarray(at)])).toEqual(expected);
    }
  });
});

it("an event that is cut before its blank line is none", () => {
  expect(parse([bytes("data: 1\n\ndata: 2\n")])).toEqual([message("1")]);
});

it("what a chunk completes comes with that chunk, also behind a lone CR", () => {
  const parser = new SseParser(100);
  expect(parser.push(bytes("data: 1\r\r"))).toEqual([message("1")]);
  expect(parser.push(bytes("\ndata: 2\r\n\r"))).toEqual([message("2")]);
});

it.each([
  ["a line that never ends", Array.from({ length: 30 }, () => bytes("x".repeat(50)))],
  ["a long line in one chunk", [bytes(`data: ${"x".repeat(1_000)}\n\n`)]],
  ["an event of endless lines", Array.from({ length: 30 }, () => bytes(`data: ${"x".repeat(50)}\n`))],
  ["no UTF-8", [Uint8Array.of(0x64, 0xff, 0x0a)]],
  ["half a character that goes on as another", [Uint8Array.of(0xf0, 0x9f), bytes("x\n")]],
])("refuses %s", (_, chunks) => {
  expect(() => parse(chunks)).toThrow(expect.objectContaining({ code: "backend_stream_broken", retryable: true }));
});

it("a stream of comments alone holds nothing and gives nothing", () => {
  expect(
    parse(
      Array.from({ length: 1_000 }, () => bytes(": PROCESSING\n\n")),
      100,
    ),
  ).toEqual([]);
});

it("a long event that comes byte by byte costs no more than its length", () => {
  const parser = new SseParser(1_000_000);
  const line = bytes(`data: ${"x".repeat(300_000)}\n\n`);
  const started = performance.now();
  let events = 0;
  for (const byte of line) events += parser.push(Uint8Array.of(byte)).length;
  expect(events).toBe(1);
  // Searching the whole line each time takes minutes.
  expect(performance.now() - started).toBeLessThan(10_000);
});
