import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { afterEach, describe, expect, test } from "vitest";
import { greedy } from "../backends/backend.ts";
import { SluiceError } from "../errors.ts";
import { createEngine } from "./create.ts";
import type { Engine, EngineEvent, EngineOptions, EngineRequest } from "./engine.ts";

const goldenModel = fileURLToPath(new URL("../../native/tests/goldens/llama-gqa-tied", import.meta.url));

function request(changes: Partial<EngineRequest> = {}): EngineRequest {
  return {
    promptIds: Uint32Array.from({ length: 20 }, (_, i) => 3 + i),
    generatedIds: new Uint32Array(),
    maxNewTokens: 12,
    sampling: greedy,
    stopIds: [],
    grammar: undefined,
    logprobs: undefined,
    salt: "",
    priority: 0,
    deadlineMs: 20_000,
    ...changes,
  };
}

/** An engine whose events can be awaited, one generation at a time. */
class Harness {
  readonly engine: Engine;
  readonly #log: Log;

  constructor(engine: Engine, log: Log) {
    this.engine = engine;
    this.#log = log;
  }

  submit(changes: Partial<EngineRequest> = {}): number {
    const result = this.engine.submit(request(changes));
    if ("refused" in result) throw new Error(`${result.refused}: ${result.message}`);
    return result.id;
  }

  ended(id: number): Promise<readonly EngineEvent[]> {
    return this.#log.ended(id);
  }

  sofar(id: number): readonly EngineEvent[] {
    return this.#log.sofar(id);
  }

  async tokens(changes: Partial<EngineRequest> = {}): Promise<readonly number[]> {
    return tokensOf(await this.ended(this.submit(changes)));
  }
}

class Log {
  readonly #events = new Map<number, EngineEvent[]>();
  readonly #waiting = new Map<number, (events: readonly EngineEvent[]) => void>();

  take(events: readonly EngineEvent[]): void {
    for (const event of events) {
      const all = this.#events.get(event.id) ?? [];
      all.push(event);
      this.#events.set(event.id, all);
      if (event.type === "finish" || event.type === "error") this.#waiting.get(event.id)?.(all);
    }
  }

  sofar(id: number): readonly EngineEvent[] {
    return this.#events.get(id) ?? [];
  }

  ended(id: number): Promise<readonly EngineEvent[]> {
    return new Promise((resolve) => this.#waiting.set(id, resolve));
  }
}

function tokensOf(events: readonly EngineEvent[]): readonly number[] {
  return events.flatMap((event) => (event.type === "tokens" ? event.ids : []));
}

const open: Engine[] = [];

async function start(changes: Partial<EngineOptions> = {}): Promise<Harness> {
  const log = new Log();
  const options: EngineOptions = {
    model: goldenModel,
    precision: "exact",
    threads: 1,
    kvTokens: 1024,
    maxRows: 4,
    maxStepTokens: 64,
    maxQueued: 4,
    vocabulary: { tokens: [], stopIds: [] },
    grammarCacheBytes: 1 << 20,
    ...changes,
  };
  const engine = await createEngine(options, { onEvents: (events) => log.take(events) });
  open.push(engine);
  return new Harness(engine, log);
}

afterEach(async () => {
  for (const engine of open.splice(0)) await engine.close();
});

describe("the engine behind its typed face", () => {
  test("tells what it has loaded", async () => {
    const { engine } = await start();
    expect(engine.info).toMatchObject({
      architecture: "llama",
      vocabularySize: 93,
      contextLength: 256,
      blockSize: 16,
      kvTokens: 1024,
      maxRows: 4,
    });
  });

  test("sends accepted, progress, tokens and one finish, in this order", async () => {
    const harness = await start();
    const events = await harness.ended(harness.submit({ logprobs: 2 }));
    const types = events.map((event) => event.type);
    expect(types.slice(0, 2)).toEqual(["accepted", "progress"]);
    expect(types.slice(2, -1).every((type) => type === "tokens")).toBe(true);
    expect(events.at(-1)).toMatchObject({
      type: "finish",
      reason: "length",
      usage: { promptTokens: 20, cachedTokens: 0, completionTokens: 12 },
    });
    for (const event of events) {
      if (event.type !== "tokens") continue;
      const [first] = event.logprobs ?? [];
      expect(first?.top).toHaveLength(2);
      expect(first?.top[0]).toEqual([event.ids[0], first?.logprob]);
    }
  });

  test("runs many generations at once with the tokens of each alone", async () => {
    const harness = await start();
    const prompts = Array.from({ length: 8 }, (_, k) =>
      Uint32Array.from({ length: 10 + 7 * k }, (_, i) => 3 + ((i * (k + 1)) % 80)),
    );
    const together = await Promise.all(prompts.map((promptIds) => harness.tokens({ promptIds })));
    const alone = await start();
    for (const [k, promptIds] of prompts.entries()) expect(together[k]).toEqual(await alone.tokens({ promptIds }));
    expect(harness.engine.integrity()).toMatchObject({ ok: true });
  });

  test("continues an answer exactly where another engine left it", async () => {
    const sampling = { ...greedy, temperature: 1, seed: -7, repetitionPenalty: 1.1, frequencyPenalty: 0.2 };
    const whole = await (await start()).tokens({ sampling });
    const rest = await (await start()).tokens({
      sampling,
      generatedIds: Uint32Array.from(whole.slice(0, 5)),
      maxNewTokens: 7,
    });
    expect([...whole.slice(0, 5), ...rest]).toEqual(whole);
  });

  test("sends nothing more after a cancel and frees the row", async () => {
    const harness = await start({ maxRows: 1 });
    const cancelled = harness.submit({ maxNewTokens: 200 });
    const next = harness.ended(harness.submit());
    harness.engine.cancel(cancelled);
    expect(tokensOf(await next)).toHaveLength(12);
    expect(harness.sofar(cancelled)).toEqual([]);
    expect(harness.engine.stats()).toMatchObject({ runningRows: 0, queuedRows: 0, blocks: { leased: 0 } });
  });

  test("refuses with a code what it cannot take now, and throws a 400 for what makes no sense", async () => {
    const { engine } = await start({ kvTokens: 64 });
    expect(engine.submit(request({ maxNewTokens: 240 }))).toMatchObject({ refused: "prompt_too_long" });
    expect(engine.submit(request({ maxNewTokens: 60 }))).toMatchObject({ refused: "kv_too_small" });
    expect(engine.submit(request({ grammar: "0".repeat(64) }))).toMatchObject({ refused: "grammar_missing" });
    const absurd = [
      request({ promptIds: Uint32Array.of(93) }),
      request({ promptIds: Uint32Array.of(0xffffffff) }),
      request({ promptIds: new Uint32Array() }),
      request({ sampling: { ...greedy, logitBias: [[93, 1]] } }),
      request({ sampling: { ...greedy, bannedSequences: [[]] } }),
    ];
    for (const one of absurd) expect(() => engine.submit(one)).toThrow(SluiceError);
  });

  test("ends a generation at its deadline with a retryable error", async () => {
    const harness = await start({ maxRows: 1 });
    const ended = harness.ended(harness.submit({ deadlineMs: 0.01, maxNewTokens: 236 }));
    expect((await ended).at(-1)).toMatchObject({ type: "error", code: "deadline_exceeded", retryable: true });
  });

  test("publishes what its cache holds as deltas that add up to the snapshot", async () => {
    const harness = await start({ kvTokens: 128 });
    const { seq: before } = harness.engine.kvSnapshot();
    const keys = new Map<string, string | undefined>();
    for (const first of [3, 30, 60]) {
      await harness.tokens({ promptIds: Uint32Array.from({ length: 40 }, (_, i) => first + (i % 20)), salt: "tenant" });
    }
    const deltas = harness.engine.kvEvents(before);
    expect(deltas?.length).toBeGreaterThan(0);
    for (const delta of deltas ?? []) {
      for (const key of delta.removed) expect(keys.delete(key)).toBe(true);
      for (const block of delta.stored) {
        expect(block.tokenIds).toHaveLength(16);
        expect(block.salt).toBe("tenant");
        expect(block.parent === undefined || keys.has(block.parent)).toBe(true);
        keys.set(block.key, block.parent);
      }
    }
    const snapshot = harness.engine.kvSnapshot();
    expect(new Set(snapshot.stored.map((block) => block.key))).toEqual(new Set(keys.keys()));
    expect(harness.engine.kvEvents(before - 1)).toBeUndefined();
    expect(harness.engine.kvEvents(snapshot.seq)).toEqual([]);
  });

  test("drains: what runs finishes, what comes is refused", async () => {
    const harness = await start();
    const ended = harness.ended(harness.submit());
    const drained = harness.engine.drain(10_000);
    expect(tokensOf(await ended)).toHaveLength(12);
    await drained;
    expect(harness.engine.submit(request())).toMatchObject({ refused: "draining" });
  });

  test("closes in the middle of generations, each of which hears of it", async () => {
    const harness = await start();
    const ended = [1, 2, 3].map((i) => harness.ended(harness.submit({ maxNewTokens: 200, priority: i })));
    await harness.engine.close();
    for (const events of await Promise.all(ended)) {
      expect(events.at(-1)).toMatchObject({ type: "error", code: "engine_closed", retryable: true });
    }
    await harness.engine.close();
  });

  test("rejects a model it cannot load with a plain message", async () => {
    await expect(start({ model: "/nowhere/model.gguf" })).rejects.toThrow(/nowhere/);
  });

  test("rejects bytes that are no grammar", async () => {
    const tokens = Array.from({ length: 93 }, (_, i) => new TextEncoder().encode(String.fromCharCode(33 + (i % 90))));
    const { engine } = await start({ vocabulary: { tokens, stopIds: [2] } });
    await expect(engine.loadGrammar("a".repeat(64), new TextEncoder().encode("not a grammar"))).rejects.toThrow(
      /artifact|grammar/,
    );
    expect(engine.hasGrammar("a".repeat(64))).toBe(false);
  });

  test("a process with a forgotten, busy or collected engine ends by itself and well", async () => {
    for (const ending of ["forget", "exit-while-busy", "collect"]) {
      const child = spawn(
        process.execPath,
        ["--expose-gc", fileURLToPath(new URL("./engine-exit.fixture.ts", import.meta.url)), goldenModel, ending],
        {
          stdio: ["ignore", "inherit", "inherit"],
        },
      );
      const [code, signal] = await once(child, "exit");
      expect({ ending, code, signal }).toEqual({ ending, code: 0, signal: null });
    }
  });
});
