import { afterEach, describe, expect, it } from "vitest";
import { closeFleets, fleet } from "../../../test/support/fleet.ts";
import { preparedRequest } from "../../../test/support/prepared.ts";
import { collect } from "../../../test/support/requests.ts";
import { accepted, answers, finish, type Script, silence, token } from "../../../test/support/scripted-backend.ts";
import { unavailable } from "../../errors.ts";
import type { Dispatcher } from "./dispatch.ts";

const never = new AbortController().signal;
afterEach(closeFleets);

const settings = { breaker: { failures: 3, window: "30s", probeAfter: "10s" }, retry: { attempts: 1 } };
const noResume = { resume: { breaks: 0 } };
const breaks: Script = () => answers(accepted, token, unavailable("backend_stream_broken", "broke"));
const breakerOf = (dispatcher: Dispatcher) => dispatcher.snapshot().pools[0]?.backends[0]?.breaker;

async function one(changes: Record<string, unknown> = {}) {
  const world = await fleet({ east: ["http://a:1"] }, { ...settings, ...changes }, undefined, noResume);
  const backend = world.backend("east/a:1");
  const ask = () =>
    collect(world.dispatcher.dispatch(preparedRequest(), 0, never)).then(
      () => "whole",
      () => "broken",
    );
  return { ...world, backend, ask, breaker: () => breakerOf(world.dispatcher) };
}

describe("a backend that begins its answers and breaks them", () => {
  it("again and again is taken out, and tried again by one", async () => {
    const { clock, backend, ask, breaker } = await one();
    backend.script = breaks;
    for (const state of ["closed", "closed", "open"]) {
      expect(await ask()).toBe("broken");
      expect(breaker()).toBe(state);
      await clock.advance(2_000);
    }
    expect(await ask()).toBe("broken");
    expect(backend.requests).toHaveLength(3);
    await clock.advance(10_000);
    backend.script = () => answers(accepted, token, finish);
    expect(await ask()).toBe("whole");
    expect(breaker()).toBe("closed");
    expect(backend.requests).toHaveLength(4);
  });

  it("by dying once, with many streams and many that wait, has failed once", async () => {
    const { clock, backend, ask, breaker } = await one();
    let die = (_: Error): void => {};
    const death = new Promise<never>((_, reject) => {
      die = reject;
    });
    death.catch(() => {});
    let asked = 0;
    backend.script = async function* () {
      yield accepted;
      if (asked++ % 2 === 0) yield token;
      await death;
    };
    const answers = Array.from({ length: 40 }, ask);
    await clock.advance(10);
    die(unavailable("backend_stream_broken", "broke"));
    expect(new Set(await Promise.all(answers))).toEqual(new Set(["broken"]));
    expect(breaker()).toBe("closed");
  });

  it("now and then among many that it finishes stays", async () => {
    const { clock, backend, ask, breaker } = await one();
    for (let round = 0; round < 10; round++) {
      backend.script = breaks;
      expect(await ask()).toBe("broken");
      backend.script = () => answers(accepted, token, finish);
      for (let time = 0; time < 3; time++) expect(await ask()).toBe("whole");
      await clock.advance(2_000);
    }
    expect(breaker()).toBe("closed");
  });

  it("long ago is forgiven", async () => {
    const { clock, backend, ask, breaker } = await one();
    backend.script = breaks;
    for (let time = 0; time < 6; time++) {
      expect(await ask()).toBe("broken");
      await clock.advance(16_000);
    }
    expect(breaker()).toBe("closed");
  });

  it("by falling silent is one that breaks them", async () => {
    const { clock, backend, ask, breaker } = await one();
    backend.script = async function* (_, signal) {
      yield token;
      yield* silence(signal);
    };
    for (let time = 0; time < 3; time++) {
      const answer = ask();
      await clock.advance(5_000);
      expect(await answer).toBe("broken");
    }
    expect(breaker()).toBe("open");
  });
});

describe("the first token of a backend of text", () => {
  const prompt = { promptIds: Uint32Array.from({ length: 1_000 }, (_, index) => index) };

  /** A backend whose prompts take half a millisecond a token, over `answered` requests; then one that says nothing. */
  async function patience(tokenIds: boolean, answered: number): Promise<number> {
    const { clock, backend, dispatcher } = await one();
    backend.capabilities = { ...backend.capabilities, tokenIds };
    backend.script = async function* (_, signal) {
      await clock.sleep(500, signal);
      yield* answers(tokenIds ? token : { type: "text", delta: "x" }, finish);
    };
    for (let request = 0; request < answered; request++) {
      const answer = collect(dispatcher.dispatch(preparedRequest({ ...prompt, blockKeys: [] }), 0, never));
      await clock.advance(500);
      await answer;
    }
    backend.script = (_, signal) => silence(signal);
    const began = clock.now();
    let endedAt: number | undefined;
    const answer = collect(dispatcher.dispatch(preparedRequest({ ...prompt, blockKeys: [] }), 0, never)).catch(() => {
      endedAt = clock.now();
    });
    while (endedAt === undefined) await clock.advance(100);
    await answer;
    return endedAt - began;
  }

  it("is waited for three times the predicted prefill longer, by what its own answers took", async () => {
    // 10 s + 3 x 1,000 tokens at two a millisecond.
    expect(await patience(false, 40)).toBeCloseTo(11_500, -2);
  });

  it("is waited for longer than a daemon's, which tells its progress", async () => {
    expect(await patience(true, 5)).toBe(10_000);
    // Nothing is known yet: one token a millisecond.
    expect(await patience(false, 0)).toBe(13_000);
  });
});
