import { afterEach, describe, expect, it } from "vitest";
import { blockKeys } from "../../src/gateway/prompt/blocks.ts";
import type { DispatchEvent } from "../../src/gateway/request.ts";
import { startHashDaemon } from "../support/daemons.ts";
import { collect, tokensOf } from "../support/requests.ts";
import {
  backendOf,
  type Cluster,
  cachedOf,
  dispatcherOver,
  promptRequest as request,
  startCluster,
} from "./cluster.ts";

const never = new AbortController().signal;
const clusters: Cluster[] = [];
afterEach(async () => {
  for (const each of clusters.splice(0)) await each.close();
});

async function cluster(args: readonly string[] = [], changes: Record<string, unknown> = {}): Promise<Cluster> {
  const started = await startCluster(() => startHashDaemon(args), "hash-engine", changes);
  clusters.push(started);
  return started;
}

const conversation = (seed: number, length: number) =>
  Uint32Array.from({ length }, (_, index) => (Math.imul(index + 1, 7919 + seed * 31) >>> 3) % 1000);

describe("three daemons", () => {
  it("the second turn of a conversation lands on the daemon that holds its prefix", async () => {
    const { dispatcher } = await cluster(["--step-ms", "5", "--step-tokens", "32"]);
    const talks = Array.from({ length: 12 }, (_, seed) => conversation(seed, 200));
    const turn = (prompt: Uint32Array) => collect(dispatcher.dispatch(request(prompt, { maxNewTokens: 16 }), 0, never));
    const first = await Promise.all(talks.map(turn));
    expect(new Set(first.map(backendOf)).size).toBe(3);
    for (const [index, prompt] of talks.entries()) {
      const answer = tokensOf(first[index] ?? []);
      const second = Uint32Array.from([...prompt, ...answer, ...conversation(100 + index, 30)]);
      const events = await turn(second);
      expect(backendOf(events)).toBe(backendOf(first[index] ?? []));
      // 12 full blocks of the first prompt, and the block that its answer completed.
      expect(cachedOf(events)).toBe(208);
    }
  });

  it("a gateway that starts later finds the prefixes by the daemons' events alone", async () => {
    const { dispatcher, daemons } = await cluster();
    const prompt = conversation(1, 320);
    const first = await collect(dispatcher.dispatch(request(prompt), 0, never));
    for (const others of [2, 3, 4, 5]) await collect(dispatcher.dispatch(request(conversation(others, 64)), 0, never));
    const newcomer = await dispatcherOver(daemons, "hash-engine");
    const second = await collect(newcomer.dispatch(request(Uint32Array.from([...prompt, 1, 2, 3])), 0, never));
    await newcomer.close();
    expect(backendOf(second)).toBe(backendOf(first));
    expect(cachedOf(second)).toBe(320);
  });

  it("another tenant's equal prompt shares nothing", async () => {
    const { dispatcher } = await cluster();
    const prompt = conversation(1, 320);
    await collect(dispatcher.dispatch(request(prompt), 0, never));
    const tenant = { name: "other", models: undefined, priority: 0, weight: 1, salt: "salt-other" };
    const other = request(prompt, { tenant, blockKeys: blockKeys(prompt, 16, "salt-other") });
    expect(cachedOf(await collect(dispatcher.dispatch(other, 0, never)))).toBe(0);
  });

  it("a daemon killed before the first token costs its callers nothing", async () => {
    // Slow steps of few tokens: three prompts of 240 stay in prefill for about two seconds.
    const { dispatcher, daemonOf } = await cluster(["--step-ms", "20", "--step-tokens", "8"]);
    const victims = new Set<string>();
    let killed: Promise<void> | undefined;
    const answers = Array.from({ length: 9 }, async (_, seed) => {
      const events: DispatchEvent[] = [];
      for await (const event of dispatcher.dispatch(request(conversation(seed, 240), { maxNewTokens: 4 }), 0, never)) {
        events.push(event);
        if (event.type === "accepted" && killed === undefined) {
          const victim = backendOf(events);
          victims.add(victim);
          killed = daemonOf(victim).kill();
        }
      }
      return events;
    });
    const all = await Promise.all(answers);
    await killed;
    expect(victims.size).toBe(1);
    const moved = all.filter((events) => events.filter(({ type }) => type === "attempt").length > 1);
    expect(moved.length).toBeGreaterThan(0);
    for (const events of all) {
      expect(events.at(-1)).toMatchObject({ type: "finish" });
      expect(tokensOf(events)).toHaveLength(4);
      expect(victims.has(backendOf(events))).toBe(false);
    }
  });

  it("daemons killed later cost their callers nothing: every answer is the unbroken one", async () => {
    // Slow enough that no answer is over before all have begun.
    const { dispatcher, daemonOf } = await cluster(["--step-ms", "20"]);
    const ask = (seed: number) => request(conversation(seed, 64), { maxNewTokens: 100, logprobs: 1 });
    const seen = Array.from({ length: 9 }, () => ({ tokens: 0, backend: "" }));
    const killed: string[] = [];
    const kills: Array<Promise<void>> = [];
    const answers = await Promise.all(
      seen.map(async (state, seed) => {
        const events: DispatchEvent[] = [];
        for await (const event of dispatcher.dispatch(ask(seed), 0, never)) {
          events.push(event);
          if (event.type === "attempt") state.backend = event.backend;
          if (event.type === "tokens") state.tokens += event.ids.length;
          // Two of the three, one after the other; the second when what the first left has been taken on.
          const due = seen.every(
            ({ tokens, backend }) => tokens >= 5 + 40 * killed.length && !killed.includes(backend),
          );
          if (due && killed.length < 2) {
            killed.push(state.backend);
            kills.push(daemonOf(state.backend).kill());
          }
        }
        return events;
      }),
    );
    await Promise.all(kills);
    expect(killed).toHaveLength(2);
    const moved = answers.filter((events) => events.filter(({ type }) => type === "attempt").length > 1);
    expect(moved.length).toBeGreaterThan(0);
    const unbroken = await Promise.all(answers.map((_, seed) => collect(dispatcher.dispatch(ask(seed), 0, never))));
    for (const [seed, events] of answers.entries()) {
      expect(tokensOf(events)).toEqual(tokensOf(unbroken[seed] ?? []));
      expect(events.filter(({ type }) => type === "accepted")).toHaveLength(1);
      expect(events.at(-1)).toMatchObject({
        type: "finish",
        reason: "length",
        usage: { promptTokens: 64, cachedTokens: cachedAtFirst(events), completionTokens: 100 },
      });
    }
  });

  it("a daemon that stands still in the middle of an answer is left, and the answer goes on elsewhere", async () => {
    const { dispatcher, daemonOf } = await cluster(["--step-ms", "2"], { deadlines: { betweenTokens: "3s" } });
    const ask = request(conversation(1, 64), { maxNewTokens: 100 });
    const events: DispatchEvent[] = [];
    for await (const event of dispatcher.dispatch(ask, 0, never)) {
      events.push(event);
      if (tokensOf(events).length === 5 && event.type === "tokens") daemonOf(backendOf(events)).freeze();
    }
    expect(events.filter(({ type }) => type === "attempt")).toHaveLength(2);
    expect(tokensOf(events)).toEqual(tokensOf(await collect(dispatcher.dispatch(ask, 0, never))));
  });

  it("requests after a kill go round the dead daemon", async () => {
    const { dispatcher, daemons } = await cluster();
    await daemons[0]?.kill();
    for (let seed = 0; seed < 20; seed++) {
      const events = await collect(dispatcher.dispatch(request(conversation(seed, 48)), 0, never));
      expect(events.at(-1)).toMatchObject({ type: "finish" });
    }
  });
});

function cachedAtFirst(events: readonly DispatchEvent[]): number | undefined {
  return events.flatMap((event) => (event.type === "accepted" ? event.cachedTokens : []))[0];
}
