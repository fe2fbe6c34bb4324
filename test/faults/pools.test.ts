import { afterEach, describe, expect, it } from "vitest";
import { policyReason } from "../support/upstream/scenarios.ts";
import { startUpstream, type Upstream } from "../support/upstream/server.ts";
import { canonicalAnswer } from "../support/upstream/wire.ts";
import { ask, attempts, expectWhole, variants } from "./caller.ts";
import { everything, type FaultGateway, type FaultGatewayOptions, startFaultGateway } from "./gateway.ts";

/** What the configuration says of a model's pools, as callers and upstreams see it. */
const open: Array<{ close(): Promise<void> }> = [];
afterEach(async () => {
  for (const each of open.splice(0).reverse()) await each.close();
});

async function start(options: FaultGatewayOptions): Promise<FaultGateway> {
  const gateway = await startFaultGateway(options);
  open.push(gateway);
  return gateway;
}

async function upstream(firstTokenMs: number): Promise<Upstream> {
  const started = await startUpstream({ timings: { tokenMs: 1, firstTokenMs } });
  open.push(started);
  return started;
}

async function metric({ url }: FaultGateway, line: string): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  const found = text.split("\n").find((each) => each.startsWith(`${line} `));
  return found === undefined ? 0 : Number(found.slice(line.length));
}

/** Resolves with the first value that is not 0: counts come a moment after the answers. */
async function counted(gateway: FaultGateway, line: string): Promise<number> {
  for (;;) {
    const value = await metric(gateway, line);
    if (value > 0) return value;
  }
}

describe.each(variants)("%s", (_, variant) => {
  it("a failure that the model's rules do not list is the caller's, and the fallback hears nothing of it", async () => {
    const pools = [{ model: "fb-s04" }, { model: "fb-ok" }];
    const gateway = await start({ pools, model: { fallback: { on: ["timeout", "context_length_exceeded"] } } });
    expect((await ask(gateway, variant)).error).toMatchObject({ status: 503 });
    expect(attempts(gateway, "fb-ok")).toBe(0);
  });

  it("a status that the rules list leads on, but a refusal for the content never does", async () => {
    const model = { fallback: { on: [400, 422] } };
    const refusing = await start({ pools: [{ model: "x-unprocessable" }, { model: "fb-ok" }], model });
    expectWhole(await ask(refusing, variant));
    expect(attempts(refusing, "x-unprocessable")).toBe(1);
    const strict = await start({ pools: [{ model: "fb-s13" }, { model: "fb-ok" }], model });
    const { error } = await ask(strict, variant);
    expect(error).toMatchObject({ status: 400, code: "content_policy_violation" });
    expect(String(error)).toContain(policyReason);
    expect(attempts(strict, "fb-ok")).toBe(0);
  });

  it("a prompt too long for the first pool goes to the next without an attempt on the first", async () => {
    const gateway = await start({
      pools: [
        { model: "x-length", capabilities: { ...everything, contextLength: 24 } },
        { model: "fb-ok", capabilities: { ...everything, contextLength: 4_096 } },
      ],
    });
    expectWhole(await ask(gateway, variant));
    expect(attempts(gateway, "x-length")).toBe(0);
    expect(attempts(gateway, "fb-ok")).toBe(1);
  });

  it("a first token that is late: another backend of the pool is asked, and the slow one is left", async () => {
    const slow = await upstream(60_000);
    const fast = await upstream(0);
    const hedge = { after: "100ms", max: 1 };
    const gateway = await start({ pools: [{ model: "fb-s07", endpoints: [slow.url, fast.url], hedge }] });
    const won = () => metric(gateway, 'sluice_hedges_total{pool="0-fb-s07",outcome="won"}');
    // Which one is asked first depends on the prompt and on ports.
    for (let request = 0; request < 64 && (await won()) === 0; request++) {
      const seen = await ask(gateway, variant, `Question ${request} of many?`);
      expectWhole(seen);
      expect(seen.completionTokens).toBe(60);
    }
    expect(await won()).toBeGreaterThan(0);
    for (const attempt of slow.attempts) {
      expect(await attempt.ended).toMatchObject({ clientLeft: true });
      expect(attempt.sent).toBe(0);
    }
  });

  it("a copy for a shadow pool changes nothing for the caller, whatever becomes of it", async () => {
    for (const [model, outcome, total] of [
      ["fb-ok", "ok", "1m"],
      ["fb-s08", "error", "1m"],
      ["fb-s13", "error", "1m"],
      ["x-stall-at-once", "timeout", "2s"],
    ] as const) {
      const pools = [{ model: "fb-s11" }, { model }];
      const shadow = { pool: `1-${model}`, fraction: 1, total };
      const gateway = await start({ pools, model: { pools: ["0-fb-s11"], shadow } });
      const seen = await ask(gateway, variant);
      expectWhole(seen);
      expect(seen).toMatchObject({ model: "fb-s11", completionTokens: 60 });
      expect(await counted(gateway, `sluice_shadow_total{model="m",outcome="${outcome}"}`)).toBe(1);
      expect(attempts(gateway, model)).toBe(1);
      expect(attempts(gateway, "fb-s11")).toBe(1);
      expect(gateway.log.filter(({ event }) => event === "request")).toHaveLength(1);
    }
  });
});

describe("an answer that must be JSON", () => {
  const schema = { type: "object", properties: { city: { type: "string" } } };
  const body = {
    model: "m",
    messages: [{ role: "user", content: "Where?" }],
    response_format: { type: "json_schema", json_schema: { name: "place", schema } },
  };
  const unable = { model: "x-no-usage", capabilities: { ...everything, jsonSchema: false } };

  it.each([true, false])(
    "is not asked of a pool that cannot give it, but of the next that can (stream: %s)",
    async (stream) => {
      const gateway = await start({ pools: [{ model: "fb-s04" }, unable, { model: "fb-ok" }] });
      const answer = await gateway.post("/v1/chat/completions", { ...body, stream });
      expect(answer.headers.get("x-sluice-pool")).toBe("2-fb-ok");
      expect(await answer.text()).toContain("Paris");
      expect(attempts(gateway, "x-no-usage")).toBe(0);
      expect(gateway.upstream.attemptsOn("fb-ok")[0]?.body.response_format).toMatchObject({ type: "json_schema" });
    },
  );

  it("ends in the failure of the pool that could, never in plain text", async () => {
    const gateway = await start({ pools: [{ model: "fb-s04" }, unable] });
    expect((await gateway.post("/v1/chat/completions", body)).status).toBe(503);
    expect(attempts(gateway, "x-no-usage")).toBe(0);
  });
});

it("a client is not to try again what the gateway has tried without success, but may where it was told when", async () => {
  const body = { model: "m", messages: [{ role: "user", content: "Hello" }] };
  const headers = async (model: string, attempts: number) => {
    const gateway = await start({ pools: [{ model, retry: { attempts } }] });
    const answer = await gateway.post("/v1/chat/completions", body);
    expect(answer.ok).toBe(false);
    expect(gateway.upstream.attemptsOn(model)).toHaveLength(attempts);
    return answer.headers.get("x-should-retry");
  };
  expect(await headers("x-html-502", 2)).toBe("false");
  expect(await headers("x-html-502", 1)).toBeNull();
  expect(await headers("x-retry-after-ms", 2)).toBeNull();
});

it("traffic is split by user, each of whom stays where they are", async () => {
  const pools = [{ model: "fb-ok" }, { model: "fb-s11" }];
  const gateway = await start({ pools, model: { split: { "0-fb-ok": 1, "1-fb-s11": 1 } } });
  const poolOf = async (user: string) => {
    const messages = [{ role: "user", content: "Hello" }];
    const answer = await gateway.post("/v1/chat/completions", { model: "m", messages, user });
    expect(await answer.json()).toMatchObject({ choices: [{ message: { content: canonicalAnswer } }] });
    return answer.headers.get("x-sluice-pool");
  };
  const users = Array.from({ length: 24 }, (_, index) => `user-${index}`);
  const first = await Promise.all(users.map(poolOf));
  expect(new Set(first).size).toBe(2);
  expect(await Promise.all(users.map(poolOf))).toEqual(first);
});

describe("a request cannot choose an upstream", () => {
  const messages = [{ role: "user", content: "Hello" }];

  it.each(["api_base", "base_url", "upstream", "api_key"])("by a field: %s", async (field) => {
    const gateway = await start({ pools: [{ model: "fb-ok" }] });
    const url = "http://169.254.169.254/v1";
    const answer = await gateway.post("/v1/chat/completions", { model: "m", messages, [field]: url });
    expect(answer.status).toBe(400);
    expect(await answer.json()).toMatchObject({ error: { code: "unknown_parameter", param: field } });
    expect(gateway.upstream.attempts).toHaveLength(0);
  });
});
