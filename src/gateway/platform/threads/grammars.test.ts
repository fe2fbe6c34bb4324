import { expect, it } from "vitest";
import { invalidRequest } from "../../../errors.ts";
import type { GrammarArtifact, GrammarSource } from "../../../grammar/grammar.ts";
import { createRemoteGrammars } from "./grammars.ts";

const never = new AbortController().signal;
const source = (minimum: number): GrammarSource => ({ kind: "json_schema", schema: { minimum }, strict: false });
const artifact = (text: string): GrammarArtifact => ({ hash: text, engine: "xgrammar", bytes: new Uint8Array(1_000) });

it("asks once for a source that it still holds, and again for one that was pushed out", async () => {
  const asked: string[] = [];
  const grammars = createRemoteGrammars({
    ask: async (text) => {
      asked.push(text);
      return artifact(text);
    },
    cacheBytes: 3_000,
  });
  for (const minimum of [1, 1, 2, 2, 3, 1]) {
    const given = source(minimum);
    expect((await grammars.compile(given, never)).hash).toBe(JSON.stringify(given));
  }
  expect(asked.map((text) => JSON.parse(text).schema.minimum)).toEqual([1, 2, 3, 1]);
});

it("remembers no refusal, and refuses of itself what nests too deeply to be sent", async () => {
  let asked = 0;
  const grammars = createRemoteGrammars({
    ask: () => Promise.reject(invalidRequest("invalid_schema", `number ${++asked}`)),
    cacheBytes: 3_000,
  });
  await expect(grammars.compile(source(1), never)).rejects.toThrow("number 1");
  await expect(grammars.compile(source(1), never)).rejects.toThrow("number 2");
  let deep: unknown = {};
  for (let level = 0; level < 200_000; level++) deep = { not: deep };
  const refused = grammars.compile({ kind: "json_schema", schema: deep, strict: false }, never);
  await expect(refused).rejects.toMatchObject({ status: 400, code: "schema_too_complex" });
});

it("asks nobody for a caller that has left", async () => {
  const grammars = createRemoteGrammars({ ask: () => Promise.reject(new Error("asked")), cacheBytes: 1 });
  await expect(grammars.compile(source(1), AbortSignal.abort(new Error("left")))).rejects.toThrow("left");
});
