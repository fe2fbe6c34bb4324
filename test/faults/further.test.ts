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

it("a caller that leaves in the middle ends the upstream's work at once, and nobody else is asked", async () => {
  const gateway = await start("x-long", "fb-ok");
  const messages = [{ role: "user" as const, content: "Go on and on." }];
  const stream = await gateway.openai.chat.completions.create({ model: "m", messages, stream: true });
  let chunks = 0;
  for await (const _ of stream) if (++chunks === 5) break;
  const leftAt = performance.now();
  const attempt = await gateway.upstream.nextAttempt();
  expect(await attempt.ended).toMatchObject({ clientLeft: true });
  expect(performance.now() - leftAt).toBeLessThan(500);
  expect(attempt.sent).toBeLessThan(200);
  expect(attempts(gateway, "fb-ok")).toBe(0);
});
