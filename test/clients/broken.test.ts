import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { everything, type FaultGateway, startFaultGateway } from "../faults/gateway.ts";
import { canonicalAnswer } from "../support/upstream/wire.ts";
import type { Ask } from "./client.ts";
import { clientAt, clients } from "./clients.ts";

/** What the upstream does after two tokens, and how the gateway calls it. */
const faults = [
  ["a clean end of the body", "x-early-clean-cut", "backend_stream_broken"],
  ["a reset of the connection", "x-early-reset", "backend_stream_broken"],
  ["an error in the stream", "x-early-error", "backend_stream_broken"],
  ["silence", "x-early-stall", "backend_timeout"],
] as const;
const kinds = ["text", "tool", "json"] as const;
const whole = {
  text: { text: canonicalAnswer },
  tool: { calls: [{ name: "find_place", input: { city: "Paris" } }] },
  json: { value: { city: "Paris", known: true } },
};

const ask = (kind: Ask["kind"]): Ask => ({ model: "m", prompt: "What is a gateway judged on?", kind });
const clientOf = (name: string, { url, openai }: FaultGateway) =>
  clientAt(name, { baseURL: `${url}/v1`, apiKey: openai.apiKey ?? "" });

/** A gateway before the faulty upstream, and before another one that could go on where `models` names it. */
const start = (models: readonly string[]): Promise<FaultGateway> =>
  startFaultGateway({
    pools: models.map((model) => ({
      model,
      // Every call here breaks; a breaker would turn the second half of them into refusals.
      breaker: { failures: 1000 },
      // Only where silence is the fault is it waited for.
      deadlines: { firstToken: "30s", betweenTokens: model === "x-early-stall" ? "300ms" : "30s" },
      capabilities: { ...everything, assistantPrefill: true },
    })),
    model: { resume: { wait: "200ms", breaks: models.length - 1 } },
    upstream: { timings: { stallMs: 60_000, tokenMs: 1 } },
  });

describe.each(faults)("%s after two tokens", (_, model, code) => {
  let alone: FaultGateway;
  let backed: FaultGateway;
  beforeAll(async () => {
    alone = await start([model]);
    backed = await start([model, "fb-ok"]);
  });
  afterAll(async () => {
    await alone.close();
    await backed.close();
  });

  describe.concurrent.each(Object.keys(clients))("%s", (name) => {
    it.each(kinds)("%s, streamed: the user is told that it broke, and never that it ended", async (kind) => {
      const client = clientOf(name, alone);
      const seen = await client.streamed(ask(kind));
      expect(seen.error).toBeInstanceOf(client.brokenStream);
      expect(seen.error).toMatchObject({ code });
      expect([undefined, "error"]).toContain(seen.finish);
      expect(canonicalAnswer.startsWith(seen.text) || kind === "json").toBe(true);
      expect(seen.calls).toEqual([]);
    });

    it.each(kinds)("%s, whole: the user gets an error with a status", async (kind) => {
      const client = clientOf(name, alone);
      const seen = await client.whole(ask(kind));
      expect(seen.error).toBeInstanceOf(client.refusal);
      expect(seen).toMatchObject({ text: "", finish: undefined, calls: [], value: undefined });
    });

    it.each(kinds)("%s, and another backend: the user has the whole answer, once", async (kind) => {
      const client = clientOf(name, backed);
      for (const mode of ["whole", "streamed"] as const) {
        const seen = await client[mode](ask(kind));
        // No backend of text can go on in the middle of a call that the user has begun to see.
        if (kind === "tool" && mode === "streamed") {
          expect(seen.error).toBeInstanceOf(client.brokenStream);
          continue;
        }
        expect(seen.error).toBeUndefined();
        expect(seen).toMatchObject(whole[kind]);
      }
    });
  });
});

describe("the same upstream without a gateway", () => {
  let gateway: FaultGateway;
  beforeAll(async () => {
    gateway = await start(["fb-ok"]);
  });
  afterAll(() => gateway.close());

  // What these tests would miss if a client learnt to see it by itself.
  it.each(["openai-node raw", "AI SDK openai", "LangChain.js"])(
    "%s takes a clean end after two tokens for the end of the answer",
    async (name) => {
      const seen = await clientAt(name, { baseURL: gateway.upstream.url, apiKey: "none" }).streamed({
        ...ask("text"),
        model: "x-early-clean-cut",
      });
      expect(seen.error).toBeUndefined();
      expect(seen.text).toBe("A gateway");
    },
  );
});
