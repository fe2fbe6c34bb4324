import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { expect, it } from "vitest";
import { launcher } from "../support/up.ts";
import { joined, startThreaded } from "./gateway.ts";

it("`sluice gateway --threads 2` serves on two threads, drains on SIGTERM and exits with 0", async () => {
  // Only its daemon and its configuration are of use here; the gateway under test is a process of its own.
  const world = await startThreaded({ threads: 1, engine: { stepMs: 2 } });
  const child = spawn(process.execPath, [launcher, "gateway", "--config", world.file, "--threads", "2"], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  const exited = once(child, "exit");
  try {
    const log: Array<Record<string, unknown>> = [];
    const ready = Promise.withResolvers<void>();
    createInterface({ input: child.stderr }).on("line", (line) => {
      if (!line.startsWith("{")) return;
      log.push(JSON.parse(line));
      if (log.at(-1)?.event === "ready") ready.resolve();
    });
    await Promise.race([ready.promise, exited]);
    const url = String(log.find(({ event }) => event === "listening")?.url);
    const { streams } = await world.together(20, () => ({
      streams: Array.from({ length: 20 }, (_, index) =>
        world.ask(`${index}`, { stream: true, max_tokens: 100, ignore_eos: true }, undefined, url),
      ),
    }));
    child.kill("SIGTERM");
    for (const answer of await Promise.all(streams)) expect(joined(answer).length).toBeGreaterThan(0);
    expect((await exited)[0]).toBe(0);
    const served = log.flatMap(({ event, thread }) => (event === "request" ? [thread] : []));
    expect(served).toHaveLength(20);
    expect(new Set(served)).toEqual(new Set([0, 1]));
  } finally {
    child.kill("SIGKILL");
    await world.close();
  }
}, 180_000);
