import { readFile } from "node:fs/promises";
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { startUp, type Up } from "../support/up.ts";

/** Resident bytes of a process; Linux keeps them in pages of 4 KiB in the second field of statm. */
async function residentBytes(pid: number): Promise<number> {
  const fields = (await readFile(`/proc/${pid}/statm`, "utf8")).split(" ");
  return Number(fields[1]) * 4096;
}

describe("memory over many requests", () => {
  let up: Up;
  let client: OpenAI;

  beforeAll(async () => {
    up = await startUp();
    client = new OpenAI({ baseURL: `${up.ready.url}/v1`, apiKey: up.ready.key, maxRetries: 0 });
  });

  afterAll(async () => {
    await up?.end();
  });

  /** One request of a kind: whole, streamed to its end, or left after its first piece. */
  async function request(index: number): Promise<void> {
    const body = {
      model: up.ready.model,
      messages: [{ role: "user" as const, content: `Say ${index}.` }],
      max_tokens: 6,
      temperature: 0,
    };
    if (index % 4 === 0) {
      await client.chat.completions.create(body);
      return;
    }
    const answer = await client.chat.completions.create({ ...body, stream: true });
    for await (const _ of answer) if (index % 4 === 1) break;
  }

  async function requests(from: number, to: number): Promise<void> {
    const waiting = Array.from({ length: to - from }, (_, offset) => from + offset).values();
    const caller = async () => {
      for (const index of waiting) await request(index);
    };
    await Promise.all(Array.from({ length: 8 }, caller));
  }

  it("stays flat in both processes, a quarter of the callers leaving early", async () => {
    const pids = [up.ready.pids.gateway, ...up.ready.pids.daemons];
    const resident = () => Promise.all(pids.map(residentBytes));
    // The first thousand fill caches that are bounded (KV blocks, pieces, heaps); the second must find them full.
    await requests(0, 1_000);
    const before = await resident();
    await requests(1_000, 2_000);
    const after = await resident();
    const grown = after.map((bytes, index) => (bytes - (before[index] ?? 0)) / 2 ** 20);
    for (const mebibytes of grown) expect(mebibytes).toBeLessThan(24);
  }, 900_000);
});
