import { createHash } from "node:crypto";
import { describe, expect, test } from "vitest";
import { configSchema } from "../../config/schema.ts";
import { createDirectory } from "./directory.ts";
import { TenantGate } from "./gate.ts";

const hashOf = (key: string): string => createHash("sha256").update(key).digest("hex");
const config = (tenants: Record<string, { keys: string[]; concurrency?: number }>) =>
  configSchema.parse({ models: {}, pools: {}, tenants });
const saltKey = new TextEncoder().encode("salt");

describe("the directory", () => {
  test("finds a tenant by any of its keys' hashes, and nobody by another", async () => {
    const directory = await createDirectory(
      config({
        a: { keys: [`sha256:${hashOf("k1")}`, `sha256:${hashOf("k2")}`] },
        b: { keys: [`sha256:${hashOf("k3")}`] },
      }),
      saltKey,
      new Map(),
    );
    expect(directory.find(hashOf("k2"))?.tenant.name).toBe("a");
    expect(directory.find(hashOf("k3"))?.tenant.name).toBe("b");
    expect(directory.find(hashOf("k4"))).toBeUndefined();
  });

  test("gives tenants salts of their own that stay the same under the same key", async () => {
    const tenants = { a: { keys: [`sha256:${hashOf("k1")}`] }, b: { keys: [`sha256:${hashOf("k2")}`] } };
    const salts = async (key: string) => {
      const directory = await createDirectory(config(tenants), new TextEncoder().encode(key), new Map());
      return ["k1", "k2"].map((name) => directory.find(hashOf(name))?.tenant.salt);
    };
    const [a, b] = await salts("x");
    expect(a).not.toBe(b);
    expect(await salts("x")).toEqual([a, b]);
    expect(await salts("y")).not.toEqual([a, b]);
  });

  test("refuses a key that two tenants have, with its path", async () => {
    const keys = [`sha256:${hashOf("k")}`];
    await expect(createDirectory(config({ a: { keys }, b: { keys } }), saltKey, new Map())).rejects.toMatchObject({
      code: "invalid_config",
      param: "tenants.b.keys[0]",
    });
  });
});

describe("the gate", () => {
  const limits = { preparing: 2, waiting: 1, concurrency: 3, bytes: 100 };
  const never = new AbortController().signal;
  const held = () => Promise.withResolvers<void>();

  test("lets so many prepare, so many wait, and turns the rest away with a hint", async () => {
    const gate = new TenantGate();
    const places = [held(), held(), held()];
    const running = places.map((place) => gate.prepare(limits, never, () => place.promise));
    expect([gate.preparing, gate.waiting]).toEqual([2, 1]);
    await expect(gate.prepare(limits, never, async () => {})).rejects.toMatchObject({
      status: 429,
      code: "too_many_preparing",
      retryAfterMs: 1_000,
    });
    for (const place of places) place.resolve();
    await Promise.all(running);
    expect([gate.preparing, gate.waiting]).toEqual([0, 0]);
  });

  test("serves those who wait in order, and forgets who left", async () => {
    const gate = new TenantGate();
    const wide = { ...limits, preparing: 1, waiting: 9 };
    const first = held();
    const order: string[] = [];
    const caller = new AbortController();
    const jobs = [
      gate.prepare(wide, never, () => first.promise),
      gate.prepare(wide, never, async () => void order.push("a")),
      gate.prepare(wide, caller.signal, async () => void order.push("left")).catch(() => order.push("gone")),
      gate.prepare(wide, never, async () => void order.push("b")),
    ];
    caller.abort();
    first.resolve();
    await Promise.all(jobs);
    expect(order).toEqual(["gone", "a", "b"]);
    expect([gate.preparing, gate.waiting]).toEqual([0, 0]);
  });

  test("gives the place on when the work fails", async () => {
    const gate = new TenantGate();
    const one = { ...limits, preparing: 1 };
    const failing = gate.prepare(one, never, () => Promise.reject(new Error("no")));
    const next = gate.prepare(one, never, async () => "done");
    await expect(failing).rejects.toThrow("no");
    await expect(next).resolves.toBe("done");
    expect(gate.preparing).toBe(0);
  });

  test("bounds what a tenant has inside, and leaving twice frees one place only", () => {
    const gate = new TenantGate();
    const leave = gate.enter(limits);
    gate.enter(limits);
    gate.enter(limits);
    expect(() => gate.enter(limits)).toThrow(
      expect.objectContaining({ status: 429, code: "concurrency_limit_exceeded" }),
    );
    leave();
    leave();
    expect(gate.inside).toBe(2);
  });

  test("bounds the bytes that wait, but lets a single large body by", () => {
    const gate = new TenantGate();
    const release = gate.hold(limits, 150);
    expect(() => gate.hold(limits, 1)).toThrow(expect.objectContaining({ status: 429, code: "too_many_bytes" }));
    release();
    gate.hold(limits, 60);
    expect(() => gate.hold(limits, 60)).toThrow();
    expect(gate.bytes).toBe(60);
  });
});
