import { rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { type DaemonProcess, startNativeDaemon } from "../support/daemons.ts";
import { type GatewayOverDaemons, startGatewayOver } from "../support/gateway.ts";
import { tinyModel } from "../support/tiny-model.ts";
import type { Ask, Seen } from "./client.ts";
import { clientAt, clients } from "./clients.ts";

const names = Object.keys(clients);

/** Then the daemon stands still, so that all five answers are in the middle when it is killed. */
const tokensTold = 12;

describe.each(["text", "json"] as const)(
  "the only daemon is killed in the middle of a streamed answer: %s",
  (kind) => {
    let model: string;
    let daemon: DaemonProcess;
    let patient: GatewayOverDaemons;
    let hasty: GatewayOverDaemons;
    let unbroken: Seen[];

    beforeAll(async () => {
      model = await tinyModel();
      daemon = await startNativeDaemon(model);
      const gatewayThatWaits = (wait: string) =>
        startGatewayOver({
          model: "tiny",
          tokenizer: `file:${join(model, "tokenizer.json")}`,
          daemons: [daemon],
          pool: { deadlines: { firstToken: "60s", betweenTokens: "60s" }, breaker: { failures: 1000 } },
          modelFields: { resume: { wait } },
        });
      hasty = await gatewayThatWaits("200ms");
      patient = await gatewayThatWaits("60s");
      unbroken = await Promise.all(names.map((name) => ask(name, patient)));
      for (const seen of unbroken) expect(seen.error).toBeUndefined();
    });
    afterAll(async () => {
      await hasty.close(0);
      await patient.close(0);
      await daemon.kill();
      await rm(model, { recursive: true });
    });
    beforeEach(async () => {
      await daemon.kill();
      daemon = await startNativeDaemon(model, { tokensTold, port: Number(new URL(daemon.url).port) });
      await expect.poll(() => readiness(hasty), { timeout: 60_000 }).toBe(200);
      await expect.poll(() => readiness(patient), { timeout: 60_000 }).toBe(200);
    });

    const ask = (name: string, { url, key }: GatewayOverDaemons): Promise<Seen> => {
      const question: Ask = { model: "tiny", prompt: "Where is it?", kind, maxTokens: 100 };
      return clientAt(name, { baseURL: `${url}/v1`, apiKey: key }).streamed(question);
    };

    /** Every client asks; the daemon is killed when all answers have begun. */
    async function askAndKill(gateway: GatewayOverDaemons): Promise<{ readonly answers: Promise<Seen>[] }> {
      const begun = () => gateway.metric('sluice_time_to_first_token_seconds_count{model="tiny"}');
      const before = await begun();
      const answers = names.map((name) => ask(name, gateway));
      await expect.poll(begun, { timeout: 60_000 }).toBe(before + names.length);
      await daemon.kill();
      return { answers };
    }

    it("nobody takes its place: every client is told that the answer broke, and never that it ended", async () => {
      const { answers } = await askAndKill(hasty);
      for (const [index, seen] of (await Promise.all(answers)).entries()) {
        const name = names[index] ?? "";
        expect(seen.error, name).toBeInstanceOf(clients[name]?.brokenStream);
        expect([undefined, "error"], name).toContain(seen.finish);
        expect(seen.calls, name).toEqual([]);
        if (kind === "text") expect(isProperPrefix(seen.text, unbroken[index]?.text ?? ""), name).toBe(true);
      }
    });

    it("another one takes its place: every client has the answer as if nothing had happened", async () => {
      const { answers } = await askAndKill(patient);
      daemon = await startNativeDaemon(model, { port: Number(new URL(daemon.url).port) });
      expect(await Promise.all(answers)).toEqual(unbroken);
    });
  },
  180_000,
);

const readiness = async ({ url }: GatewayOverDaemons) => (await fetch(`${url}/readyz`)).status;

const isProperPrefix = (part: string, whole: string): boolean =>
  part !== "" && part.length < whole.length && whole.startsWith(part);
