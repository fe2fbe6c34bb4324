import { setImmediate } from "node:timers/promises";
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Pair, startPair } from "../support/pair.ts";

const topics = ["rivers", "clocks", "bread", "maps", "glass", "whales", "paper", "bridges"];
const requests = Array.from({ length: 16 }, (_, index) => ({
  messages: [{ role: "user" as const, content: `Write a few sentences about ${topics[index % 8]}, number ${index}.` }],
  // Half of them sampled: equal draws whoever else is in the batch.
  temperature: index % 2 === 0 ? 0 : 0.9,
  seed: 1_000 + index,
  max_tokens: 48,
}));

describe("many callers at once", () => {
  let pair: Pair;
  let client: OpenAI;

  beforeAll(async () => {
    pair = await startPair();
    client = new OpenAI({ baseURL: `${pair.gateway.url}/v1`, apiKey: pair.key, maxRetries: 0 });
  });

  afterAll(async () => {
    await pair?.close();
  });

  /** The text of one streamed answer; `leaveAfter` pieces the caller goes away. */
  async function stream(index: number, leaveAfter = Number.POSITIVE_INFINITY): Promise<string> {
    const request = requests[index];
    if (request === undefined) throw new Error(`no request ${index}`);
    const answer = await client.chat.completions.create({ model: pair.model, ...request, stream: true });
    let text = "";
    let pieces = 0;
    for await (const chunk of answer) {
      text += chunk.choices[0]?.delta.content ?? "";
      if (++pieces >= leaveAfter) break;
    }
    return text;
  }

  /** The engine is idle: nothing runs, nothing is leased, and the books agree. */
  async function expectIdle(): Promise<void> {
    await expect.poll(() => pair.daemon.engine.stats().runningRows, { timeout: 60_000 }).toBe(0);
    const { blocks } = pair.daemon.engine.stats();
    expect(blocks.leased).toBe(0);
    expect(blocks.free + blocks.cached + blocks.leased).toBe(blocks.total);
    expect(pair.daemon.engine.integrity()).toMatchObject({ ok: true });
  }

  it("gives 16 concurrent streams the same tokens as each alone, also when half of the callers leave", async () => {
    const alone: string[] = [];
    for (const index of requests.keys()) alone.push(await stream(index));
    expect(new Set(alone).size).toBe(16);

    const together = await Promise.all(requests.map((_, index) => stream(index)));
    expect(together).toEqual(alone);

    const half = await Promise.all(requests.map((_, index) => stream(index, index % 2 === 1 ? 8 : undefined)));
    for (const [index, text] of half.entries()) {
      if (index % 2 === 0) expect(text).toBe(alone[index]);
      else expect(alone[index]?.startsWith(text)).toBe(true);
    }
    await expectIdle();
  }, 600_000);

  describe("a caller that leaves", () => {
    const rounds = 20;
    let round = 0;
    /** Long enough that its prefill takes several steps; different from its first token on, so nothing is cached. */
    const prompt = (repeats: number) => `${++round} ${"the quick brown fox jumps over the lazy dog ".repeat(repeats)}`;

    /** Milliseconds from the caller's leaving to the engine's cancel, and steps until the row was free. */
    async function leave(
      request: { readonly content: string; readonly stream: boolean },
      moment: (submitted: Promise<void>, firstPieces: Promise<void>) => Promise<void>,
    ): Promise<{ readonly ms: number; readonly steps: number }> {
      const { engine } = pair.daemon;
      const { submit, cancel } = engine;
      const submitted = Promise.withResolvers<void>();
      const cancelled = Promise.withResolvers<number>();
      engine.submit = (given) => {
        submitted.resolve();
        return submit(given);
      };
      engine.cancel = (id) => {
        cancelled.resolve(performance.now());
        cancel(id);
      };
      try {
        const caller = new AbortController();
        const pieces = Promise.withResolvers<void>();
        const answered = fetch(`${pair.gateway.url}/v1/chat/completions`, {
          method: "POST",
          headers: { authorization: `Bearer ${pair.key}`, "content-type": "application/json" },
          body: JSON.stringify({
            model: pair.model,
            messages: [{ role: "user", content: request.content }],
            max_tokens: 400,
            ignore_eos: true,
            stream: request.stream,
          }),
          signal: caller.signal,
        }).then(async (answer) => {
          let count = 0;
          for await (const piece of answer.body ?? []) if (piece.length > 0 && ++count === 3) pieces.resolve();
        });
        const gone = answered.then(
          () => "the answer ended by itself",
          () => "left",
        );
        await moment(submitted.promise, pieces.promise);
        const leftAt = performance.now();
        caller.abort();
        const ms = (await cancelled.promise) - leftAt;
        const before = engine.stats().steps;
        while (engine.stats().runningRows > 0) await setImmediate();
        const steps = engine.stats().steps - before;
        expect(await gone).toBe("left");
        return { ms, steps };
      } finally {
        Object.assign(engine, { submit, cancel });
      }
    }

    const median = (values: readonly number[]) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;

    it.each([
      ["while the gateway waits for the daemon's headers", 120, false, (submitted: Promise<void>) => submitted],
      [
        "before the first token",
        120,
        true,
        async (submitted: Promise<void>) => {
          await submitted;
          const { steps } = pair.daemon.engine.stats();
          while (pair.daemon.engine.stats().steps <= steps) await setImmediate();
        },
      ],
      ["in the middle of the stream", 1, true, (_: Promise<void>, pieces: Promise<void>) => pieces],
    ] as const)(
      "%s reaches the engine within 100 ms, and its row is free at the end of the step",
      async (_, repeats, stream, moment) => {
        const results: Array<{ readonly ms: number; readonly steps: number }> = [];
        for (let count = 0; count < rounds; count++)
          results.push(await leave({ content: prompt(repeats), stream }, moment));
        expect(median(results.map(({ ms }) => ms))).toBeLessThan(100);
        // The step that runs when the cancel comes, and at most the one already planned behind it.
        expect(Math.max(...results.map(({ steps }) => steps))).toBeLessThanOrEqual(2);
        await expectIdle();
      },
      600_000,
    );
  });
});
