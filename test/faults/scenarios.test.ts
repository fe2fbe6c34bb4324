import { setInterval } from "node:timers/promises";
import { APIError } from "openai";
import { afterEach, describe, expect, it } from "vitest";
import { policyReason } from "../support/upstream/scenarios.ts";
import type { UpstreamOptions } from "../support/upstream/server.ts";
import { ask, attempts, expectWhole, type Seen, variants } from "./caller.ts";
import { everything, type FaultGateway, startFaultGateway } from "./gateway.ts";

/**
 * The sixteen faults of failoverbench 0.1 in its strict sense (pass = the whole answer, and the conduct checks hold), each
 * on both APIs, streamed and not. Attempts are counted at the upstream. The outage lasts a tenth of the catalogue's. What is
 * silent stays so for far longer than the gateway's deadlines, and only there are they short: a slow machine is no fault.
 */
const timings = {
  silentMs: 12_000,
  firstTokenMs: 12_000,
  stallMs: 12_000,
  outageMs: 6_000,
  retryAfterMs: 2_000,
  tokenMs: 1,
};
const silent = new Set(["fb-s06", "fb-s07", "fb-s09"]);
const deadlines = (model: string) =>
  silent.has(model) ? { firstToken: "1s", betweenTokens: "500ms" } : { firstToken: "1m", betweenTokens: "1m" };
const breaker = { failures: 5, window: "3s", probeAfter: "1s" };

const gateways: FaultGateway[] = [];
afterEach(async () => {
  for (const gateway of gateways.splice(0)) await gateway.close();
});

/** `fallback` may be "none"; `prefill`: what it says it can do with an answer that was begun. */
async function start(
  primary: string,
  fallback = "fb-ok",
  prefill = true,
  upstream: UpstreamOptions = {},
): Promise<FaultGateway> {
  const capabilities = { ...everything, assistantPrefill: prefill };
  const gateway = await startFaultGateway({
    pools: [
      { model: primary, deadlines: deadlines(primary), breaker },
      ...(fallback === "none" ? [] : [{ model: fallback, deadlines: deadlines(fallback), breaker, capabilities }]),
    ],
    model: { resume: { wait: "1s" } },
    upstream: { timings, ...upstream },
  });
  gateways.push(gateway);
  return gateway;
}

describe.each(variants)("%s", (_, variant) => {
  it("S01, one 429 with Retry-After: answered by the fallback at once, or by the primary when its time has come", async () => {
    const both = await start("fb-s01");
    expectWhole(await ask(both, variant));
    expect(attempts(both, "fb-s01")).toBe(1);
    const alone = await start("fb-s01", "none");
    expectWhole(await ask(alone, variant));
    const [first, second] = alone.upstream.attemptsOn("fb-s01");
    expect((second?.at ?? 0) - (first?.at ?? 0)).toBeGreaterThanOrEqual(1_800);
    expect(attempts(alone, "fb-s01")).toBe(2);
  });

  it.each([
    ["S02, 429 for ever", "fb-s02"],
    ["S04, 503 for ever", "fb-s04"],
    ["S16, 503 for ever, told by the answer's model", "fb-s16"],
  ])("%s: the fallback answers after few attempts", async (_name, primary) => {
    const gateway = await start(primary);
    const seen = await ask(gateway, variant);
    expectWhole(seen);
    expect(seen.model).toBe("fb-ok");
    expect(attempts(gateway, primary)).toBeLessThanOrEqual(4);
    expect(attempts(gateway, "fb-ok")).toBe(1);
  });

  it.each([
    ["S03, one 500", "fb-s03"],
    ["S05, one reset before any byte", "fb-s05"],
  ])("%s: the same route answers at the second attempt", async (_name, primary) => {
    const gateway = await start(primary);
    const seen = await ask(gateway, variant);
    expectWhole(seen);
    expect(seen.model).toBe(primary);
    expect(attempts(gateway, primary)).toBe(2);
    expect(attempts(gateway, "fb-ok")).toBe(0);
  });

  it.each([
    ["S06, never an answer", "fb-s06"],
    ["S07, headers at once and the first token too late", "fb-s07"],
  ])("%s: one attempt, then the fallback", async (_name, primary) => {
    const gateway = await start(primary);
    const seen = await ask(gateway, variant);
    expectWhole(seen);
    expect(seen.model).toBe("fb-ok");
    // A tenth of what the catalogue allows.
    expect(seen.ms).toBeLessThan(10_000);
    expect(attempts(gateway, primary)).toBe(1);
  });

  it.each([
    ["S08, cut after 40 of 60 tokens", "fb-s08"],
    ["S09, silent after 20 tokens", "fb-s09"],
    ["S10, an event that is no JSON", "fb-s10"],
  ])("%s: the whole answer, once, and the next call is well", async (_name, primary) => {
    for (const prefill of [true, false]) {
      const gateway = await start(primary, "fb-ok", prefill);
      const seen = await ask(gateway, variant);
      expectWhole(seen);
      expect(seen.ms).toBeLessThan(10_000);
      expect(attempts(gateway, primary)).toBe(1);
      expect(attempts(gateway, "fb-ok")).toBe(1);
      expectWhole(await ask(gateway, variant));
    }
  });

  it("S11, no [DONE]: finished at once, with usage", async () => {
    const gateway = await start("fb-s11");
    const seen = await ask(gateway, variant);
    expectWhole(seen);
    expect(seen.completionTokens).toBe(60);
    expect(seen.ms).toBeLessThan(8_000);
    expect(attempts(gateway, "fb-ok")).toBe(0);
  });

  it("S12, context too long: one attempt, then the fallback", async () => {
    const gateway = await start("fb-s12");
    expectWhole(await ask(gateway, variant));
    expect(attempts(gateway, "fb-s12")).toBe(1);
  });

  it("S13, refused for its content: one attempt, the provider's reason, and nobody else is asked", async () => {
    const gateway = await start("fb-s13");
    const { error } = await ask(gateway, variant);
    expect(error).toBeInstanceOf(APIError);
    expect(error).toMatchObject({ status: 400, code: "content_policy_violation" });
    expect(String(error)).toContain(policyReason);
    expect(attempts(gateway, "fb-s13")).toBe(1);
    expect(attempts(gateway, "fb-ok")).toBe(0);
  });

  it("S14, cut, and the fallback refuses a prefill that it declares: told anew, the refusal unseen", async () => {
    const gateway = await start("fb-s14", "fb-ok-noprefill");
    expectWhole(await ask(gateway, variant));
    expect(attempts(gateway, "fb-s14")).toBe(1);
    expect(attempts(gateway, "fb-ok-noprefill")).toBeLessThanOrEqual(2);
  });
});

it("S15, an outage: every call is served, the primary is probed once an interval and back soon after", async () => {
  const gateway = await start("fb-s15");
  const calls: Promise<Seen>[] = [];
  const variant = variants[0][1];
  for await (const _ of setInterval(400)) if (calls.push(ask(gateway, variant)) === 20) break;
  for (const seen of await Promise.all(calls)) expectWhole(seen);
  const primary = gateway.upstream.attemptsOn("fb-s15");
  const inOutage = primary.filter(({ at }) => at < timings.outageMs);
  // Those that opened the breaker, then a probe a second.
  expect(inOutage.length).toBeLessThanOrEqual(breaker.failures + 6);
  const back = primary.find(({ at, sent }) => at >= timings.outageMs && sent > 0);
  expect(back?.at).toBeLessThan(timings.outageMs + 10_000);
});
