import { afterEach, describe, expect, it, vi } from "vitest";
import {
  type Answer,
  deadlines,
  joined,
  keyHash,
  startThreaded,
  type Threaded,
  type ThreadedOptions,
} from "./gateway.ts";

// Each of these starts threads that load a whole gateway; on a slow machine that alone takes long.
vi.setConfig({ testTimeout: 180_000, hookTimeout: 60_000 });
const eventually = { timeout: 60_000 };

let threaded: Threaded | undefined;
afterEach(async () => {
  await threaded?.close();
  threaded = undefined;
});

async function start(options: ThreadedOptions): Promise<Threaded> {
  threaded = await startThreaded(options);
  return threaded;
}

const times = <T>(count: number, make: (index: number) => Promise<T>): Promise<T[]> =>
  Promise.all(Array.from({ length: count }, (_, index) => make(index)));
const prompts = Array.from({ length: 24 }, (_, index) => `Prompt ${index}: ${"abcdefgh".repeat(index + 4)}`);
const idle = ({ engines }: Threaded) =>
  Promise.all(engines.map((engine) => engine.until(() => engine.stats().runningRows === 0)));
/** Resolves when each engine that has work has done that many steps more. */
const generate = ({ engines }: Threaded, steps: number) =>
  Promise.all(
    engines.map((engine) => {
      const { steps: before } = engine.stats();
      return engine.until(() => engine.stats().steps >= before + steps || engine.stats().runningRows === 0);
    }),
  );
const errorOf = ({ text }: Answer): Readonly<Record<string, unknown>> => JSON.parse(text).error;

describe.each([1, 3])("with %i threads", (threads) => {
  it("24 streams at once say what each says alone, also when half of their callers leave", async () => {
    const gateway = await start({ threads, daemons: 2, engine: { stepMs: 1 } });
    const { ask, engines } = gateway;
    const stream = (prompt: string) => ask(prompt, { stream: true, max_tokens: 32 }).then(joined);
    const alone: string[] = [];
    for (const prompt of prompts) alone.push(await stream(prompt));
    expect(new Set(alone).size).toBe(prompts.length);
    expect(await Promise.all(prompts.map(stream))).toEqual(alone);

    const leavers = new AbortController();
    const half = await gateway.together(prompts.length, () => ({
      answers: prompts.map((prompt, index) => {
        if (index % 2 === 0) return stream(prompt);
        return ask(prompt, { stream: true, max_tokens: 4_000, ignore_eos: true }, leavers.signal).then(
          () => "stayed",
          () => "left",
        );
      }),
    }));
    await generate(gateway, 3);
    leavers.abort();
    expect(await Promise.all(half.answers)).toEqual(alone.map((text, index) => (index % 2 === 0 ? text : "left")));
    await idle(gateway);
    for (const engine of engines) expect(engine.integrity()).toMatchObject({ ok: true });
  });

  it("a tenant's bound on answers is exact under 200 requests at once, and every place comes back", async () => {
    const gateway = await start({ threads, tenant: { concurrency: 8 } });
    const { ask, engines } = gateway;
    for (let round = 0; round < 2; round++) {
      for (const engine of engines) engine.pause();
      const refused = Promise.withResolvers<void>();
      let refusals = 0;
      const answers = times(200, async (index) => {
        const answer = await ask(`${round} ${index}`);
        if (answer.status === 429 && ++refusals === 192) refused.resolve();
        return answer;
      });
      // While nothing can end, so that no place is taken twice in turn.
      await refused.promise;
      for (const engine of engines) engine.resume();
      const all = await answers;
      expect(all.filter(({ status }) => status === 200)).toHaveLength(8);
      expect(new Set(all.filter(({ status }) => status === 429).map((answer) => errorOf(answer).code))).toEqual(
        new Set(["concurrency_limit_exceeded"]),
      );
      await idle(gateway);
      await expect
        .poll(async () => (await gateway.get("/metrics")).text, eventually)
        .toContain("\nsluice_active_requests 0\n");
    }
  });

  it("the second turn of a conversation lands where its first did, whichever thread it comes to", async () => {
    const { ask, engines } = await start({ threads, daemons: 3, engine: { stepMs: 5 }, daemon: { maxStepTokens: 64 } });
    const talks = Array.from({ length: 12 }, (_, index) => `${index} `.repeat(120));
    const turns = (prompt: string) =>
      engines.flatMap(({ submitted }, engine) =>
        submitted.filter(({ promptIds }) => startsWith(promptIds, prompt)).map(() => engine),
      );
    await times(12, (index) => ask(talks[index] ?? ""));
    const first = talks.map((talk) => turns(talk)[0]);
    expect(new Set(first).size).toBe(3);
    for (const talk of talks) await ask(`${talk} and then?`);
    expect(talks.map((talk) => turns(talk))).toEqual(first.map((engine) => [engine, engine]));
  });

  it("draining lets every stream come to its end and takes no new one", async () => {
    const gateway = await start({ threads, engine: { stepMs: 2 } });
    const { streams } = await gateway.together(prompts.length, () => ({
      streams: prompts.map((prompt) => gateway.ask(prompt, { stream: true, max_tokens: 100, ignore_eos: true })),
    }));
    const closed = gateway.gateway.close(120_000);
    for (const text of await Promise.all(streams)) expect(joined(text).length).toBeGreaterThan(0);
    await closed;
    await expect(gateway.ask("too late")).rejects.toThrow();
  });

  it("a new configuration is everywhere when it is applied, a bad one nowhere, and nobody notices", async () => {
    const gateway = await start({ threads, daemons: 2, engine: { stepMs: 1 } });
    const stop = new AbortController();
    const asked = times(6, async (index) => {
      const statuses: number[] = [];
      while (!stop.signal.aborted) statuses.push((await gateway.ask(`Under load, ${index}`)).status);
      return statuses;
    });
    const wanted = {
      pools: { all: { backend: "daemon", endpoints: gateway.daemons.map(({ url }) => url).slice(0, 1), deadlines } },
    };
    const other = "sk-another";
    await gateway.write({ ...wanted, tenants: { t: { keys: [keyHash("sk-threads"), keyHash(other)] } } });
    await gateway.logged("config_applied");
    const { submitted } = gateway.engines[1] ?? { submitted: [] };
    const known = await times(20, () => gateway.as(other, "/v1/models"));
    expect(known.map(({ status }) => status)).toEqual(known.map(() => 200));
    await idle(gateway);
    const before = submitted.length;
    await gateway.write({ ...wanted, models: { m: { pools: ["nowhere"], tokenizer: "file:tokenizer.json" } } });
    expect(await gateway.logged("config_refused")).toMatchObject({ path: "models.m.pools[0]" });
    await gateway.write({ ...wanted, models: { m: { pools: ["all"], tokenizer: "file:none.json" } } });
    await expect.poll(() => gateway.log.filter(({ event }) => event === "config_refused").length, eventually).toBe(2);
    const still = await times(20, () => gateway.as(other, "/v1/models"));
    expect(still.map(({ status }) => status)).toEqual(still.map(() => 200));
    stop.abort();
    const statuses = (await asked).flat();
    expect(statuses.length).toBeGreaterThan(6);
    expect(new Set(statuses)).toEqual(new Set([200]));
    // The second daemon has left the pool, in every thread.
    expect(submitted.length).toBe(before);
  });

  it("a schema is compiled for every thread, and a refused one is refused alike", async () => {
    const { ask, engines } = await start({ threads });
    const format = (schema: unknown) => ({ structured_outputs: { json: schema } });
    const good = await times(24, (index) => ask(`${index}`, format({ type: "integer" })));
    expect(good.map(({ status }) => status)).toEqual(good.map(() => 200));
    expect(new Set(engines.flatMap(({ grammarLoads }) => grammarLoads)).size).toBe(1);
    const bad = await times(12, (index) => ask(`${index}`, format({ type: "no such type" })));
    expect(new Set(bad.map(({ status, text }) => `${status} ${text}`)).size).toBe(1);
    expect(errorOf(bad[0] ?? { status: 0, text: "{}" })).toMatchObject({
      param: expect.stringContaining("structured_outputs.json"),
    });
  });
});

describe("three threads", () => {
  const threads = 3;

  it("all serve one port, and answer for one gateway", async () => {
    const gateway = await start({ threads });
    await times(60, (index) => gateway.ask(`${index}`));
    const serving = () => new Set(gateway.log.flatMap(({ event, thread }) => (event === "request" ? [thread] : [])));
    await expect.poll(() => serving().size, eventually).toBe(3);
    const metrics = await times(12, () => gateway.get("/metrics"));
    for (const { text } of metrics) {
      expect(text).toContain('sluice_requests_total{api="completion",model="m",outcome="ok"} 60\n');
      expect(text).toContain('sluice_request_seconds_count{model="m"} 60\n');
    }
    expect(new Set((await times(12, () => gateway.get("/readyz"))).map(({ status }) => status))).toEqual(
      new Set([200]),
    );
    await gateway.daemons[0]?.close();
    const unready = () =>
      times(12, () => gateway.get("/readyz")).then((all) => all.every(({ status }) => status === 503));
    await expect.poll(unready, eventually).toBe(true);
  });

  it("one that dies breaks its own answers only, gives back what it held, and is replaced", async () => {
    const gateway = await start({ threads, tenant: { concurrency: 30 }, engine: { stepMs: 3 } });
    const [engine] = gateway.engines;
    await times(30, (index) => gateway.ask(`${index}`));
    const total = async () =>
      /sluice_requests_total\{[^}]*outcome="ok"\} (\d+)/.exec((await gateway.get("/metrics")).text)?.[1];
    await expect.poll(total, eventually).toBe("30");
    const { streams } = await gateway.together(30, () => ({
      streams: times(30, (index) =>
        gateway.ask(`Long ${index}`, { stream: true, max_tokens: 300, ignore_eos: true }).then(joined, () => undefined),
      ),
    }));
    await generate(gateway, 3);
    engine?.pause();
    await gateway.workers[0]?.terminate();
    engine?.resume();
    const said = await streams;
    const broken = said.filter((text) => text === undefined).length;
    expect(broken).toBeGreaterThan(0);
    expect(broken).toBeLessThan(30);
    expect(await gateway.logged("thread_died")).toMatchObject({ thread: 1 });
    await gateway.logged("thread_replaced");
    await idle(gateway);
    expect(Number(await total())).toBe(30 + 30 - broken);
    const again = await times(30, (index) => gateway.ask(`Again ${index}`));
    expect(again.map(({ status }) => status)).toEqual(again.map(() => 200));
    expect(gateway.workers).toHaveLength(3);
  });

  it("start again on the port of one that ended, but not on one that is taken", async () => {
    const gateway = await start({ threads });
    const taken = startThreaded({ threads, config: { listen: { port: gateway.gateway.port } } });
    await expect(taken).rejects.toMatchObject({ code: "port_taken" });
  });
});

function startsWith(ids: ArrayLike<number>, text: string): boolean {
  const bytes = new TextEncoder().encode(text);
  return bytes.every((byte, index) => ids[index] === byte);
}
