import { afterEach, describe, expect, it } from "vitest";
import { closeFleets, fleet } from "../../../test/support/fleet.ts";
import { preparedRequest } from "../../../test/support/prepared.ts";
import { collect, tokensOf } from "../../../test/support/requests.ts";
import { accepted, answers, finish, silence, token } from "../../../test/support/scripted-backend.ts";
import { unavailable } from "../../errors.ts";
import type { PreparedRequest } from "../request.ts";
import { isShadowed } from "./shadow.ts";

const never = new AbortController().signal;
afterEach(closeFleets);

/** Model `m` is answered by `east`; its requests are copied to `trial`. */
async function world(changes: Record<string, unknown> = {}) {
  const shadow = { pool: "trial", fraction: 1, concurrency: 2, total: "10s", ...changes };
  const all = await fleet({ east: ["http://a:1"], trial: ["http://b:1"] }, {}, undefined, { pools: ["east"], shadow });
  const ask = (changes: Partial<PreparedRequest> = {}, choice = 0, signal = never) =>
    collect(all.dispatcher.dispatch(preparedRequest(changes), choice, signal));
  const trial = all.backend("trial/b:1");
  const outcomes = () => all.shadows.map(({ outcome }) => outcome);
  const idle = () => {
    for (const { name, backends } of all.dispatcher.snapshot().pools)
      for (const { inFlight, load } of backends)
        expect({ name, inFlight, load }).toEqual({
          name,
          inFlight: 0,
          load: { pendingPrefillTokens: 0, activeRows: 0 },
        });
  };
  return { ...all, ask, trial, outcomes, idle };
}

describe("a copied request", () => {
  it("goes to the shadow pool once, under another id, last in line, outside the caller's trace", async () => {
    const { clock, ask, trial, outcomes, backend, ends, reports, idle } = await world();
    const events = await ask({ traceparent: "00-1-2-01" });
    expect(trial.requests).toHaveLength(0);
    await clock.advance(1);
    const [copy] = trial.requests;
    const [own] = backend("east/a:1").requests;
    expect(copy).toMatchObject({ promptIds: own?.promptIds, sampling: own?.sampling, traceparent: undefined });
    expect(copy?.id).not.toBe(own?.id);
    expect(copy?.priority).toBeLessThan(-100);
    // The caller sees one attempt, and so do its hooks.
    expect(events.filter(({ type }) => type === "attempt")).toHaveLength(1);
    expect(ends).toEqual([{ attempts: 1, code: undefined }]);
    expect(reports.map(({ pool }) => pool)).toEqual(["east"]);
    expect(outcomes()).toEqual(["ok"]);
    idle();
  });

  it("is one in as many as asked for, by its id, and one for all its choices", async () => {
    const ids = Array.from({ length: 10_000 }, (_, index) => `request-${index}`);
    const shadowed = ids.filter((id) => isShadowed(preparedRequest({ id }), 0.1));
    expect(shadowed.length / ids.length).toBeCloseTo(0.1, 1.5);
    expect(ids.some((id) => isShadowed(preparedRequest({ id }), 0))).toBe(false);
    const { clock, ask, trial } = await world();
    for (const choice of [0, 1, 2]) await ask({ n: 3 }, choice);
    await clock.advance(1);
    expect(trial.requests).toHaveLength(1);
  });

  it.each([
    ["fails", "error", () => answers(accepted, unavailable("backend_unreachable", "refused"))],
    ["breaks off", "error", () => answers(token, unavailable("backend_stream_broken", "broke"))],
    ["hangs", "timeout", (_: unknown, signal: AbortSignal) => silence(signal)],
  ] as const)("that %s is the operator's news only: %s", async (_, outcome, script) => {
    const { clock, ask, trial, outcomes, dispatcher, idle } = await world({ total: "5s" });
    trial.script = script;
    for (let time = 0; time < 3; time++) {
      expect(tokensOf(await ask())).toEqual([7]);
      await clock.advance(6_000);
    }
    expect(outcomes()).toEqual([outcome, outcome, outcome]);
    expect(trial.requests).toHaveLength(3);
    expect(dispatcher.snapshot().pools.find(({ name }) => name === "east")?.backends[0]?.breaker).toBe("closed");
    idle();
  });

  it("is not made where as many are running as may, and never keeps the caller waiting", async () => {
    const { clock, ask, trial, outcomes, idle } = await world({ concurrency: 2, total: "5s" });
    trial.script = (_, signal) => silence(signal);
    const answers = await Promise.all([ask(), ask(), ask(), ask()]);
    for (const events of answers) expect(tokensOf(events)).toEqual([7]);
    await clock.advance(1);
    expect(trial.requests).toHaveLength(2);
    expect(outcomes()).toEqual(["busy", "busy"]);
    await clock.advance(5_000);
    expect(outcomes()).toEqual(["busy", "busy", "timeout", "timeout"]);
    await ask();
    await clock.advance(1);
    expect(trial.requests).toHaveLength(3);
    await clock.advance(6_000);
    idle();
  });

  it("is given up with its caller", async () => {
    const { clock, ask, trial, outcomes, backend, idle } = await world();
    let aborted = 0;
    backend("east/a:1").script = (_, signal) => silence(signal);
    trial.script = (_, signal) => {
      signal.addEventListener("abort", () => aborted++);
      return silence(signal);
    };
    const control = new AbortController();
    const answer = expect(ask({}, 0, control.signal)).rejects.toMatchObject({ code: "cancelled" });
    await clock.advance(1);
    expect(trial.requests).toHaveLength(1);
    control.abort();
    expect(aborted).toBe(1);
    await answer;
    await clock.advance(0);
    expect(outcomes()).toEqual(["cancelled"]);
    idle();
  });

  it("outlives its caller's answer, and ends with the gateway", async () => {
    const { clock, ask, trial, outcomes, dispatcher } = await world();
    trial.script = (_, signal) => silence(signal);
    await ask();
    await clock.advance(1_000);
    expect(outcomes()).toEqual([]);
    await dispatcher.close();
    await clock.advance(0);
    expect(outcomes()).toEqual(["cancelled"]);
  });

  it("finds nobody where the shadow pool is down, which is no matter for readiness", async () => {
    const { clock, ask, trial, outcomes, dispatcher } = await world();
    trial.ready = false;
    await clock.advance(3_000);
    expect(dispatcher.ready()).toBe(true);
    expect(tokensOf(await ask())).toEqual([7]);
    await clock.advance(1);
    expect(outcomes()).toEqual(["unavailable"]);
    expect(trial.requests).toHaveLength(0);
  });

  it("counts against no retry budget, and its failures are not tried again", async () => {
    const { clock, ask, trial, backend } = await world({ concurrency: 1_000 });
    trial.script = () => answers(unavailable("backend_unreachable", "refused"));
    for (let time = 0; time < 200; time++) await ask();
    await clock.advance(1);
    let attempts = 0;
    backend("east/a:1").script = () =>
      attempts++ === 0 ? answers(unavailable("backend_unreachable", "refused")) : answers(token, finish);
    const answer = ask();
    await clock.advance(1_000);
    expect(tokensOf(await answer)).toEqual([7]);
  });
});
