import diagnostics from "node:diagnostics_channel";
import { once } from "node:events";
import { createServer, request as httpRequest } from "node:http";
import { createServer as createTcpServer } from "node:net";
import { Readable } from "node:stream";
import { request } from "undici";
import { afterEach, describe, expect, it } from "vitest";
import { createHashEngine, type HashEngine, hashEngineParts } from "../../../test/support/hash-engine.ts";
import { collect, generationRequest, greedy, tokensOf } from "../../../test/support/requests.ts";
import { cleanUps, client, closeServed, daemon } from "../../../test/support/served-daemon.ts";
import type { GenerationEvent, KvFeedEvent } from "../backend.ts";
import { serveDaemon } from "./server.ts";

afterEach(closeServed);

const never = new AbortController().signal;
const artifact = { hash: "ab".repeat(32), engine: "xgrammar", bytes: new TextEncoder().encode("artifact") } as const;
const grammar = { artifact, source: { kind: "json_object" } } as const;

describe("generate", () => {
  it("streams the engine's tokens and ends with its usage", async () => {
    const { backend } = await daemon();
    const events = await collect(backend.generate(generationRequest(), never));
    expect(events[0]).toEqual({ type: "accepted", cachedTokens: 0 });
    expect(tokensOf(events)).toHaveLength(8);
    expect(events.at(-1)).toMatchObject({
      type: "finish",
      reason: "length",
      usage: { promptTokens: 40, cachedTokens: 0, completionTokens: 8 },
    });
  });

  it("continues an answer from its sent tokens as if it had never been cut", async () => {
    const { backend } = await daemon();
    const whole = tokensOf(await collect(backend.generate(generationRequest(), never)));
    const generatedIds = Uint32Array.from(whole.slice(0, 3));
    const rest = await collect(backend.generate(generationRequest({ generatedIds, maxNewTokens: 5 }), never));
    expect(tokensOf(rest)).toEqual(whole.slice(3));
  });

  it("keeps the connections of answers that ended", async () => {
    const { backend, url } = await daemon();
    let connections = 0;
    const count = () => connections++;
    diagnostics.subscribe("undici:client:connected", count);
    for (let turn = 0; turn < 10; turn++) await collect(backend.generate(generationRequest(), never));
    diagnostics.unsubscribe("undici:client:connected", count);
    // Two, since the end of one body may come a turn after its last event.
    expect(connections).toBeLessThanOrEqual(2);
    const metrics = await (await request(`${url}/metrics`)).body.text();
    expect(metrics).toContain("sluice_daemon_generated_tokens_total 81");
    expect(metrics).toContain("sluice_daemon_cancelled_total 0");
  });

  it("uploads a missing grammar once for any number of concurrent answers", async () => {
    const { backend, engine } = await daemon();
    const answers = Array.from({ length: 12 }, () => collect(backend.generate(generationRequest({ grammar }), never)));
    for (const events of await Promise.all(answers)) expect(events.at(-1)?.type).toBe("finish");
    expect(engine.grammarLoads).toEqual([artifact.hash]);
  });

  it("tells a generation that waits that the engine is at work, so that its deadline can count from there", async () => {
    const { backend } = await daemon({ maxRows: 1, heartbeatMs: 5 }, { stepMs: 2 });
    const first = collect(backend.generate(generationRequest({ maxNewTokens: 40 }), never));
    const second = await collect(backend.generate(generationRequest({ maxNewTokens: 1 }), never));
    await first;
    expect(second.slice(0, 2).map((event) => event.type)).toEqual(["progress", "progress"]);
    expect(second.at(-1)?.type).toBe("finish");
  });
});

describe("a caller that leaves", () => {
  const turns = 9;

  /** An answer under way; wrapped, since a promise of a promise would wait for its end. */
  interface Begun {
    readonly rest: Promise<unknown>;
  }

  /** Median over some answers: a busy machine may be late once. `begin` resolves when the answer stands where it should. */
  async function medianDelay(engine: HashEngine, begin: (signal: AbortSignal) => Promise<Begun>): Promise<number> {
    const delays: number[] = [];
    for (let turn = 0; turn < turns; turn++) {
      const control = new AbortController();
      const { rest } = await begin(control.signal);
      const at = performance.now();
      control.abort();
      await engine.until(() => engine.cancelled.size > turn);
      delays.push(performance.now() - at);
      await expect(rest).rejects.toMatchObject({ code: "cancelled" });
    }
    expect(engine.stats()).toMatchObject({ runningRows: 0, queuedRows: 0 });
    expect(engine.integrity()).toMatchObject({ ok: true });
    return delays.toSorted((a, b) => a - b)[turns >> 1] ?? Number.NaN;
  }

  /** Reads until the first event of a kind; what remains is read by the returned promise. */
  async function readTo(kind: GenerationEvent["type"], events: AsyncIterable<GenerationEvent>): Promise<Begun> {
    const iterator = events[Symbol.asyncIterator]();
    for (let next = await iterator.next(); next.done !== true; next = await iterator.next()) {
      if (next.value.type === kind) break;
    }
    const rest = (async () => {
      while ((await iterator.next()).done !== true);
    })();
    // It fails when the answer is cancelled, which may be before anyone awaits it.
    rest.catch(() => {});
    return { rest };
  }

  it("frees the engine within 100 ms while it waits for headers", async () => {
    const { backend, engine } = await daemon();
    engine.pause();
    const delay = await medianDelay(engine, async (signal) => {
      const before = engine.submitted.length;
      const rest = collect(backend.generate(generationRequest(), signal));
      rest.catch(() => {});
      await engine.until(() => engine.submitted.length > before);
      return { rest };
    });
    expect(delay).toBeLessThan(100);
  });

  it("frees the engine within 100 ms before the first token", async () => {
    const { backend, engine } = await daemon({ maxStepTokens: 1 }, { stepMs: 2 });
    const promptIds = Uint32Array.from({ length: 4000 }, (_, index) => index % 1000);
    const delay = await medianDelay(engine, (signal) =>
      readTo("progress", backend.generate(generationRequest({ promptIds, maxNewTokens: 1 }), signal)),
    );
    expect(delay).toBeLessThan(100);
  });

  it("frees the engine within 100 ms in the middle of the answer, and its blocks", async () => {
    const { backend, engine } = await daemon({}, { stepMs: 2 });
    const delay = await medianDelay(engine, (signal) =>
      readTo("tokens", backend.generate(generationRequest({ maxNewTokens: 4000 }), signal)),
    );
    expect(delay).toBeLessThan(100);
  });

  it("frees the engine when it stops reading without a word", async () => {
    const { backend, engine } = await daemon({}, { stepMs: 1 });
    for await (const event of backend.generate(generationRequest({ maxNewTokens: 1000 }), never)) {
      if (event.type === "tokens") break;
    }
    await engine.until(() => engine.cancelled.size === 1);
  });

  it("loses its generation when it reads too slowly, and the daemon keeps no more than the bound", async () => {
    const { url, engine } = await daemon({ answerBufferBytes: 64 * 1024, kvTokens: 65_536 }, { contextLength: 65_536 });
    const body = JSON.stringify({
      id: "slow",
      promptIds: [1],
      maxNewTokens: 60_000,
      sampling: greedy,
      stopIds: [],
      logprobs: 20,
      salt: "",
      priority: 0,
      deadlineMs: 60_000,
    });
    const slow = httpRequest(`${url}/v1/generate`, { method: "POST" }, (response) => response.pause());
    slow.on("error", () => {});
    slow.end(body);
    await engine.until(() => engine.cancelled.size === 1);
    const metrics = await (await request(`${url}/metrics`)).body.text();
    expect(metrics).toContain("sluice_daemon_slow_readers_total 1");
    slow.destroy();
  });
});

describe("an answer of its own connection that breaks", () => {
  async function peer(answer: string, end: "end" | "reset"): Promise<string> {
    const server = createTcpServer((socket) => {
      socket.on("error", () => {});
      socket.once("data", () => {
        const head = "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n\r\n";
        socket.write(head + answer, () => (end === "end" ? socket.end() : socket.resetAndDestroy()));
      });
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    cleanUps.push(async () => server.close());
    const address = server.address();
    return `http://127.0.0.1:${typeof address === "object" ? address?.port : 0}`;
  }

  const accepted = '{"type":"accepted","cachedTokens":0}\n';
  const token = '{"type":"tokens","ids":[5]}\n';
  it.each([
    ["ends without a finish", accepted + token, "end"],
    ["ends inside a line", `${accepted}{"type":"tok`, "end"],
    ["is reset", accepted + token, "reset"],
    ["holds a line that is not JSON", `${accepted + token}%%%\n${token}`, "end"],
    ["holds an event nobody knows", `${accepted}{"type":"surprise"}\n`, "end"],
    ["holds tokens that are no ids", `${accepted}{"type":"tokens","ids":["a"]}\n`, "end"],
    ["is longer than asked for", accepted + token.repeat(9), "end"],
    ["has a line beyond the bound", `${accepted}{"type":"tokens","ids":[${"1,".repeat(3_000_000)}1]}\n`, "end"],
  ] as const)("is an error a caller can tell from an end: it %s", async (_, answer, end) => {
    const backend = client(await peer(answer, end), undefined, { link: "none" });
    await expect(collect(backend.generate(generationRequest(), never))).rejects.toMatchObject({
      code: "backend_stream_broken",
      retryable: true,
    });
  });

  it("hands on the tokens that came before it broke", async () => {
    const backend = client(await peer(accepted + token, "end"), undefined, { link: "none" });
    const seen: GenerationEvent[] = [];
    await expect(
      (async () => {
        for await (const event of backend.generate(generationRequest(), never)) seen.push(event);
      })(),
    ).rejects.toMatchObject({ code: "backend_stream_broken" });
    expect(tokensOf(seen)).toEqual([5]);
  });

  it("is told apart from a daemon that is not there", async () => {
    const gone = createServer();
    gone.listen(0, "127.0.0.1");
    await once(gone, "listening");
    const address = gone.address();
    gone.close();
    await once(gone, "close");
    const backend = client(`http://127.0.0.1:${typeof address === "object" ? address?.port : 0}`);
    await expect(collect(backend.generate(generationRequest(), never))).rejects.toMatchObject({
      code: "backend_unreachable",
      retryable: true,
    });
  });
});

describe("what the daemon refuses", () => {
  const valid = {
    id: "a",
    promptIds: [1, 2],
    maxNewTokens: 1,
    sampling: greedy,
    stopIds: [],
    salt: "",
    priority: 0,
    deadlineMs: 1000,
  };
  it.each([
    ["a body that is not JSON", "{", 400, { code: "malformed_json" }],
    [
      "a wrong type, with its path",
      { ...valid, promptIds: [1, "x"] },
      400,
      { code: "invalid_value", param: "promptIds[1]" },
    ],
    ["a token beyond the vocabulary", { ...valid, promptIds: [1, 1000] }, 400, { param: "promptIds[1]" }],
    [
      "a banned token beyond it",
      { ...valid, sampling: { ...greedy, bannedSequences: [[1], [2, 5000]] } },
      400,
      { param: "sampling.bannedSequences[1][1]" },
    ],
    ["an unknown field", { ...valid, surprise: 1 }, 400, { code: "invalid_value" }],
    ["an unknown grammar", { ...valid, grammar: "0".repeat(64) }, 409, { code: "grammar_missing" }],
    [
      "a prompt that can never fit",
      { ...valid, maxNewTokens: 9000 },
      400,
      { code: "prompt_too_long", retryable: false },
    ],
    ["another model", { ...valid, model: "other" }, 400, { code: "unknown_model", param: "model" }],
    ["a body above the bound", { ...valid, salt: "x".repeat(5000) }, 413, { code: "body_too_large" }],
  ] as const)("%s", async (_, body, status, error) => {
    const { url } = await daemon({ bodyBytes: 4096 });
    const text = typeof body === "string" ? body : JSON.stringify(body);
    const response = await request(`${url}/v1/generate`, { method: "POST", body: text });
    expect(response.statusCode).toBe(status);
    expect(await response.body.json()).toMatchObject({ error });
  });

  it("counts the bytes of a chunked body", async () => {
    const { url } = await daemon({ bodyBytes: 4096 });
    const chunks = (async function* () {
      for (let index = 0; index < 20; index++) yield Buffer.alloc(1024, 32);
    })();
    const response = await request(`${url}/v1/generate`, { method: "POST", body: Readable.from(chunks) });
    expect(response.statusCode).toBe(413);
    await response.body.dump();
  });

  it("an id that is in use, and ends an answer by DELETE", async () => {
    const { backend, url, engine } = await daemon();
    engine.pause();
    const answer = collect(backend.generate(generationRequest({ id: "same" }), never));
    await engine.until(() => engine.submitted.length === 2);
    const second = await request(`${url}/v1/generate`, {
      method: "POST",
      body: JSON.stringify({ ...valid, id: "same" }),
    });
    expect(second.statusCode).toBe(409);
    expect(await second.body.json()).toMatchObject({ error: { code: "duplicate_id" } });
    expect((await request(`${url}/v1/generate/same`, { method: "DELETE" })).statusCode).toBe(204);
    expect((await answer).at(-1)).toMatchObject({ type: "error", code: "cancelled" });
    expect((await request(`${url}/v1/generate/unknown`, { method: "DELETE" })).statusCode).toBe(204);
  });

  it("an artifact without the right MAC, before the engine sees a byte of it", async () => {
    const { engine, url } = await daemon({ poolKey: "right" });
    const stranger = client(url, "wrong");
    await expect(collect(stranger.generate(generationRequest({ grammar }), never))).rejects.toMatchObject({
      code: "backend_error",
      metricLabel: "backend_invalid_pool_key",
    });
    const forged = await request(`${url}/v1/grammars/${artifact.hash}`, {
      method: "PUT",
      headers: { authorization: "Bearer right", "x-sluice-mac": "00".repeat(32) },
      body: artifact.bytes,
    });
    expect(forged.statusCode).toBe(403);
    expect(await forged.body.json()).toMatchObject({ error: { code: "invalid_mac" } });
    expect(engine.grammarLoads).toEqual([]);
  });

  it("to listen off loopback without a pool key", async () => {
    const start = serveDaemon(
      { model: "hash", host: "0.0.0.0", port: 0, precision: "exact", threads: 1, kvTokens: 1024, maxRows: 1 },
      hashEngineParts(),
    );
    await expect(start).rejects.toMatchObject({ code: "pool_key_required" });
  });

  it("sleep and wake, since its engine cannot", async () => {
    const { url } = await daemon();
    for (const path of ["sleep", "wake"]) {
      const response = await request(`${url}/v1/${path}`, { method: "POST" });
      expect(response.statusCode).toBe(501);
      expect(await response.body.json()).toMatchObject({ error: { code: "not_supported" } });
    }
  });

  it("more work than its queue holds, with a hint when to come back", async () => {
    const { backend, engine } = await daemon({ maxQueued: 1 });
    engine.pause();
    const waiting = new AbortController();
    const answer = collect(backend.generate(generationRequest(), waiting.signal));
    await engine.until(() => engine.submitted.length === 2);
    await expect(collect(backend.generate(generationRequest(), never))).rejects.toMatchObject({
      code: "queue_full",
      retryable: true,
      retryAfterMs: 1000,
    });
    waiting.abort();
    await expect(answer).rejects.toMatchObject({ code: "cancelled" });
  });
});

describe("KV events", () => {
  const take = async (events: AsyncIterable<KvFeedEvent>, enough: (event: KvFeedEvent) => boolean) => {
    const seen: KvFeedEvent[] = [];
    for await (const event of events) {
      seen.push(event);
      if (enough(event)) break;
    }
    return seen;
  };

  it("begin with a snapshot, go on with deltas, and resume where a reader left off", async () => {
    const { backend } = await daemon();
    await collect(backend.generate(generationRequest(), never));
    const [snapshot] = await take(backend.kvEvents(undefined, never), (event) => event.type === "snapshot");
    if (snapshot?.type !== "snapshot") throw new Error("expected a snapshot");
    expect(snapshot.blocks.map((block) => block.tokenIds.length)).toEqual([16, 16]);
    expect(snapshot.blocks[1]?.parent).toBe(snapshot.blocks[0]?.key);

    await collect(backend.generate(generationRequest({ salt: "another" }), never));
    const resumed = await take(
      backend.kvEvents({ seq: snapshot.seq, instance: snapshot.instance }, never),
      (event) => event.type === "delta",
    );
    expect(resumed.map((event) => event.type)).toEqual(["delta"]);
    expect(resumed[0]).toMatchObject({ seq: snapshot.seq + 1 });
  });

  it("begin anew when the reader's place belongs to another run of the daemon, or lies too far back", async () => {
    const { backend } = await daemon({}, { ring: 2 });
    const { blocks: _, ...other } = { seq: 0, instance: "another run", blocks: [] };
    const [fresh] = await take(backend.kvEvents(other, never), () => true);
    if (fresh?.type !== "snapshot") throw new Error("expected a snapshot");
    for (const salt of ["a", "b", "c", "d"]) await collect(backend.generate(generationRequest({ salt }), never));
    const [again] = await take(backend.kvEvents({ seq: fresh.seq, instance: fresh.instance }, never), () => true);
    expect(again?.type).toBe("snapshot");
  });

  it("show a quiet feed to be alive", async () => {
    const { backend } = await daemon({ heartbeatMs: 5 });
    const seen = await take(backend.kvEvents(undefined, never), (event) => event.type === "heartbeat");
    expect(seen.at(-1)?.type).toBe("heartbeat");
  });

  it("come in lines of bounded size, complete only with the last one", async () => {
    const { backend } = await daemon({ kvTokens: 16 * 2000 }, { contextLength: 20_000 });
    const promptIds = Uint32Array.from({ length: 16 * 1000 }, (_, index) => index % 999);
    await collect(backend.generate(generationRequest({ promptIds }), never));
    const seen = await take(backend.kvEvents(undefined, never), (event) => event.type !== "heartbeat" && !event.more);
    expect(seen.map((event) => event.type)).toEqual(["snapshot", "delta"]);
  });
});

describe("probes", () => {
  it("say ready after a token, and tell the load", async () => {
    const { backend, url } = await daemon();
    expect(await backend.health(never)).toEqual({ ready: true });
    expect(await backend.load(never)).toMatchObject({
      runningRows: 0,
      queuedRows: 0,
      pendingPrefillTokens: 0,
      freeKvTokens: 4096,
    });
    expect(await backend.info(never)).toMatchObject({
      blockSize: 16,
      contextLength: 8192,
      vocabularyHash: "hash-engine",
    });
    expect((await request(`${url}/healthz`)).statusCode).toBe(200);
  });

  it("turn red when there is work and no step ends", async () => {
    const { backend, engine, url } = await daemon({ stallMs: 0 });
    engine.pause();
    const control = new AbortController();
    const answer = collect(backend.generate(generationRequest(), control.signal));
    await engine.until(() => engine.submitted.length === 2);
    expect((await request(`${url}/healthz`)).statusCode).toBe(503);
    expect(await backend.health(never)).toEqual({ ready: false, reason: "the engine has stalled" });
    control.abort();
    await expect(answer).rejects.toMatchObject({ code: "cancelled" });
  });

  it("need no key, while everything else does", async () => {
    const { url, backend } = await daemon({ poolKey: "secret" });
    expect((await request(`${url}/readyz`)).statusCode).toBe(200);
    expect((await request(`${url}/v1/info`)).statusCode).toBe(401);
    expect((await backend.info(never)).model).toBe("hash");
  });
});

describe("shutting down", () => {
  it("finishes what runs and refuses what is new", async () => {
    const { backend, url, engine } = await daemon({ drainMs: 60_000 }, { stepMs: 1 });
    const running = collect(backend.generate(generationRequest({ maxNewTokens: 50 }), never));
    await engine.until(() => engine.stats().runningRows === 1);
    expect((await request(`${url}/v1/drain`, { method: "POST" })).statusCode).toBe(202);
    expect(await backend.health(never)).toEqual({ ready: false, reason: "draining" });
    await expect(collect(backend.generate(generationRequest(), never))).rejects.toMatchObject({ code: "draining" });
    expect((await running).at(-1)).toMatchObject({ type: "finish" });
  });

  it("cancels what outlasts the drain, with an error and not with an end", async () => {
    const served = await daemon({ drainMs: 20 }, { stepMs: 1 });
    const running = collect(served.backend.generate(generationRequest({ maxNewTokens: 4000 }), never));
    await served.engine.until(() => served.engine.stats().runningRows === 1);
    await served.close();
    cleanUps.splice(0, 1);
    expect((await running).at(-1)).toMatchObject({ type: "error", code: "draining", retryable: true });
  });
});

it("a model that produces no token never becomes a daemon", async () => {
  const start = serveDaemon(
    { model: "hash", port: 0, precision: "exact", threads: 1, kvTokens: 0, maxRows: 1 },
    {
      ...hashEngineParts(),
      createEngine: async (options, callbacks) => createHashEngine(options, callbacks),
    },
  );
  await expect(start).rejects.toMatchObject({ code: "warm_up_failed" });
});
