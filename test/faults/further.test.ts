import { afterEach, describe, expect, it } from "vitest";
import { canonicalAnswer } from "../support/upstream/wire.ts";
import { ask, attempts, expectWhole, variants } from "./caller.ts";
import { everything, type FaultGateway, startFaultGateway } from "./gateway.ts";

/** Faults beyond the catalogue's, each one reported of some gateway; a fallback that goes on where the first one broke. */
const gateways: FaultGateway[] = [];
afterEach(async () => {
  for (const gateway of gateways.splice(0)) await gateway.close();
});

async function start(...models: readonly string[]): Promise<FaultGateway> {
  const deadlines = { firstToken: "1s", betweenTokens: "500ms" };
  // One that goes on with its own answers would come to the end of it cut by cut.
  const capabilities = { ...everything, assistantPrefill: models.length > 1 };
  const gateway = await startFaultGateway({
    pools: models.map((model) => ({ model, deadlines, capabilities })),
    model: { resume: { wait: "200ms" } },
    upstream: { timings: { stallMs: 3_000, tokenMs: 1 } },
  });
  gateways.push(gateway);
  return gateway;
}

const breaks = [
  "x-clean-cut",
  "x-reset-after-5",
  "x-stall-at-once",
  "x-error-bare",
  "x-error-event",
  "x-error-choices",
  "x-error-first",
  "x-odd-finish",
  "x-gzip-cut",
  "x-html-502",
  "x-redirect",
  "x-quota",
  "x-retry-after-ms",
] as const;

describe.each(variants)("%s", (_, variant) => {
  it.each(breaks)("%s: the fallback makes the answer whole", async (model) => {
    const gateway = await start(model, "fb-ok");
    expectWhole(await ask(gateway, variant));
    expect(attempts(gateway, model)).toBeLessThanOrEqual(2);
    expect(attempts(gateway, "fb-ok")).toBe(1);
  });

  it.each(["x-clean-cut", "x-reset-after-5", "x-error-choices", "x-gzip-cut"])(
    "%s, and nobody to go on: an error, never a clean end, and no more than was said",
    async (model) => {
      const gateway = await start(model);
      const seen = await ask(gateway, variant);
      expect(seen.error).toBeInstanceOf(Error);
      expect(seen.finish).toBeUndefined();
      expect(canonicalAnswer.startsWith(seen.content)).toBe(true);
    },
  );

  it("x-reset-after-5, nobody to go on, and the stream is held until it is whole: a plain error", async () => {
    const gateway = await startFaultGateway({
      pools: [{ model: "x-reset-after-5" }],
      model: { resume: { hold: true, wait: "10ms" } },
    });
    gateways.push(gateway);
    const seen = await ask(gateway, variant);
    expect(seen.error).toMatchObject({ status: 503 });
    expect(seen.content).toBe("");
  });

  it.each(["x-usage-with-finish", "x-usage-running", "x-no-usage", "x-lingers", "x-gzip"])(
    "%s is no fault",
    async (model) => {
      const gateway = await start(model, "fb-ok");
      expectWhole(await ask(gateway, variant));
      expect(attempts(gateway, model)).toBe(1);
      expect(attempts(gateway, "fb-ok")).toBe(0);
    },
  );
});

it("a backend that breaks every stream is taken out, and no caller notices", async () => {
  const breaker = { failures: 2, window: "1m", probeAfter: "1m" };
  const gateway = await startFaultGateway({ pools: [{ model: "x-reset-after-5", breaker }, { model: "fb-ok" }] });
  gateways.push(gateway);
  let calls = 0;
  // Breaks within a second are one incident.
  do {
    expectWhole(await ask(gateway, variants[0][1]));
    calls++;
  } while (attempts(gateway, "x-reset-after-5") === calls);
  for (let time = 0; time < 5; time++) expectWhole(await ask(gateway, variants[0][1]));
  expect(attempts(gateway, "x-reset-after-5")).toBe(calls - 1);
  expect(attempts(gateway, "fb-ok")).toBe(calls + 5);
});

describe.each(variants)("a caller of %s that leaves", (_, { api, stream }) => {
  it.each([
    ["while there are no headers", "fb-s06", 0],
    ["before the first token", "x-stall-at-once", 0],
    ["in the middle of the answer", "x-long", 5],
  ])("%s ends the upstream's work at once, and nobody else is asked", async (_window, model, sent) => {
    const gateway = await startFaultGateway({
      pools: [{ model }, { model: "fb-ok" }],
      upstream: { timings: { stallMs: 60_000, tokenMs: 20 } },
    });
    gateways.push(gateway);
    const prompt = "Go on and on.";
    const body = {
      model: "m",
      stream,
      ...(api === "chat" ? { messages: [{ role: "user", content: prompt }] } : { prompt }),
    };
    const caller = new AbortController();
    const path = api === "chat" ? "/v1/chat/completions" : "/v1/completions";
    const answer = gateway.post(path, body, caller.signal).then(async (response) => response.text());
    const left = expect(answer).rejects.toThrow();
    const attempt = await gateway.upstream.nextAttempt();
    // A round trip: what the upstream sent first has arrived.
    do await (await fetch(`${gateway.url}/healthz`)).text();
    while (attempt.sent < sent);
    const leftAt = performance.now();
    caller.abort();
    expect(await attempt.ended).toMatchObject({ clientLeft: true });
    expect(performance.now() - leftAt).toBeLessThan(5_000);
    await left;
    expect(attempt.sent).toBeLessThan(200);
    expect(attempts(gateway, model)).toBe(1);
    expect(attempts(gateway, "fb-ok")).toBe(0);
  });
});
