import { PassThrough } from "node:stream";
import { describe, expect, it } from "vitest";
import { type Carried, StreamOutlet } from "./outlets.ts";

const patient = { timeout: 20_000 };

describe("a stream's reader", () => {
  it("that falls behind gets the steps it missed as one line, a row a generation", () => {
    const socket = new PassThrough({ highWaterMark: 64 });
    const stream = new StreamOutlet<Carried>("s", socket, 1024);
    const [a, b] = [1, 2].map((number) => ({ number, unsent: "" }));
    if (a === undefined || b === undefined) throw new Error("unreachable");
    const step = (...ids: readonly [Carried, number][]) => {
      for (const [generation, id] of ids) {
        stream.take(generation, { type: "tokens", id: generation.number, ids: [id], logprobs: undefined });
      }
      return stream.flush();
    };
    stream.take(a, { type: "accepted", id: 1, cachedTokens: 0 });
    expect(step([a, 5])).toBe(true);
    for (let token = 10; token < 13; token++) expect(step([a, token], [b, token + 100])).toBe(true);
    stream.take(b, {
      type: "finish",
      id: 2,
      reason: "stop",
      usage: { promptTokens: 1, cachedTokens: 0, completionTokens: 3 },
      timings: { queuedMs: 0, prefillMs: 0, decodeMs: 0, steps: 3, maskMs: 0 },
    });
    expect(stream.flush()).toBe(true);
    const lines: string[] = [];
    socket.setEncoding("utf8").on("data", (text: string) => lines.push(...text.split("\n").filter(Boolean)));
    return expect
      .poll(() => lines.map((line) => JSON.parse(line)), patient)
      .toEqual([
        { stream: "s" },
        { step: 1, before: [{ type: "accepted", id: 1, cachedTokens: 0 }], rows: [[1, 5]] },
        {
          step: 2,
          rows: [
            [1, 10, 11, 12],
            [2, 110, 111, 112],
          ],
          after: [expect.objectContaining({ type: "finish", id: 2 })],
        },
      ]);
  });

  it("that falls behind by more than the bound is told to be gone", () => {
    const stream = new StreamOutlet<Carried>("s", new PassThrough({ highWaterMark: 8 }), 100);
    const generation = { number: 1, unsent: "" };
    const step = () => {
      stream.take(generation, { type: "tokens", id: 1, ids: [123_456], logprobs: undefined });
      return stream.flush();
    };
    // Seven characters a token.
    expect(Array.from({ length: 16 }, step).filter(Boolean)).toHaveLength(14);
  });
});
