import { expect, it } from "vitest";
import { readNdjson } from "./ndjson.ts";

async function* chunks(...parts: ReadonlyArray<string | Uint8Array>): AsyncGenerator<Uint8Array> {
  for (const part of parts) yield typeof part === "string" ? new TextEncoder().encode(part) : part;
}
async function read(source: AsyncIterable<Uint8Array>, maxLineBytes = 100): Promise<unknown[]> {
  const all: unknown[] = [];
  for await (const values of readNdjson(source, maxLineBytes)) all.push(...values);
  return all;
}

it("joins lines over chunks, also in the middle of a character", async () => {
  const bytes = new TextEncoder().encode('{"a":"한"}\n[1]\n');
  expect(await read(chunks(bytes.subarray(0, 7), bytes.subarray(7, 8), bytes.subarray(8)))).toEqual([{ a: "한" }, [1]]);
});

it("hands on all lines of a chunk together and skips blank ones", async () => {
  const batches: unknown[][] = [];
  for await (const values of readNdjson(chunks("1\n\n2\r\n", "\n", "3\n4", "\n"), 10)) batches.push(values);
  expect(batches).toEqual([[1, 2], [3], [4]]);
});

it.each([
  ["no JSON", ["1\nnope\n"]],
  ["no UTF-8", [Uint8Array.of(0x22, 0xff, 0x22, 0x0a)]],
  ["a line that is never finished", ["1\n[2"]],
  ["a line beyond the bound", ["[", " ".repeat(200), "]\n"]],
  ["a line beyond the bound in one chunk", [`[${" ".repeat(200)}]\n`]],
])("refuses %s", async (_, parts) => {
  await expect(read(chunks(...parts))).rejects.toMatchObject({ code: "backend_stream_broken", retryable: true });
});
