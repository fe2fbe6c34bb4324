import { once } from "node:events";
import { createServer, request as httpRequest, type IncomingMessage } from "node:http";
import { connect, createServer as createTcpServer, type Socket } from "node:net";
import { setImmediate } from "node:timers/promises";
import { request } from "undici";
import { afterEach, describe, expect, it } from "vitest";
import type { HashEngine } from "../../../test/support/hash-engine.ts";
import { collect, generationRequest, greedy, tokensOf } from "../../../test/support/requests.ts";
import { cleanUps, client, closeServed, daemon } from "../../../test/support/served-daemon.ts";
import type { GenerationEvent, GenerationRequest } from "../backend.ts";

afterEach(closeServed);

const never = new AbortController().signal;
const patient = { timeout: 20_000 };

/** Mulberry32 (Tommy Ettinger, 2017): the same cases each time. */
function randomFrom(start: number): (below: number) => number {
  let state = start;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 0x1_0000_0000) * below);
  };
}

const gauge = async (url: string, name: string) => {
  const text = await (await request(`${url}/metrics`)).body.text();
  return Number(new RegExp(`^sluice_daemon_${name} (\\d+)`, "m").exec(text)?.[1]);
};

async function expectIdle(engine: HashEngine): Promise<void> {
  await engine.until(() => engine.stats().runningRows + engine.stats().queuedRows === 0);
  expect(engine.integrity()).toMatchObject({ ok: true });
}

/** Ends as "finish", or with the code of what was thrown; the tokens that came before. */
async function outcome(events: AsyncIterable<GenerationEvent>) {
  const tokens: number[] = [];
  let last = "";
  try {
    for await (const event of events) {
      last = event.type === "error" ? event.code : event.type;
      if (event.type === "tokens") tokens.push(...event.ids);
    }
    return { tokens, end: last };
  } catch (error) {
    return { tokens, end: error instanceof Error && "code" in error ? `${error.code}` : `${error}` };
  }
}

/** A stream opened by hand, unread until asked. */
async function openStream(url: string, headers: Record<string, string> = {}) {
  const call = httpRequest(`${url}/v1/streams`, { method: "POST", headers });
  call.on("error", () => {});
  call.end();
  const [response]: IncomingMessage[] = await once(call, "response");
  if (response === undefined) throw new Error("no response");
  cleanUps.push(async () => call.destroy());
  response.on("error", () => {});
  if (response.statusCode !== 200) {
    let text = "";
    for await (const chunk of response.setEncoding("utf8")) text += chunk;
    return { status: response.statusCode, error: JSON.parse(text).error.code, id: "", lines: [], call };
  }
  response.setEncoding("utf8");
  const lines = (async function* () {
    let rest = "";
    for await (const chunk of response) {
      const parts = (rest + chunk).split("\n");
      rest = parts.pop() ?? "";
      yield* parts.map((part) => JSON.parse(part));
    }
  })();
  const id: string = (await lines.next()).value.stream;
  return { status: 200, id, lines, call };
}

const body = (changes: object) =>
  JSON.stringify({
    id: "a",
    promptIds: [1, 2],
    maxNewTokens: 4,
    sampling: greedy,
    stopIds: [],
    salt: "",
    priority: 0,
    deadlineMs: 60_000,
    ...changes,
  });

async function post(url: string, changes: object) {
  const { statusCode, body: answer } = await request(`${url}/v1/generate`, { method: "POST", body: body(changes) });
  const text = await answer.text();
  return { status: statusCode, code: text === "" ? undefined : JSON.parse(text).error.code };
}

/** Hands each request to the daemon that `target` names; undefined = there is no such endpoint. */
async function front(target: (incoming: IncomingMessage) => string | undefined) {
  const server = createServer((incoming, response) => {
    const url = target(incoming);
    if (url === undefined) {
      incoming.resume();
      response.writeHead(404, { "content-type": "application/json" });
      response.end('{"error":{"code":"not_found","message":"no such endpoint","retryable":false}}');
      return;
    }
    const { method, headers } = incoming;
    const onward = httpRequest(`${url}${incoming.url}`, { method, headers }, (answer) => {
      response.writeHead(answer.statusCode ?? 502, answer.headers).flushHeaders();
      answer.pipe(response);
    });
    response.on("close", () => onward.destroy());
    onward.on("error", () => response.destroy());
    incoming.pipe(onward);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  cleanUps.push(async () => {
    server.closeAllConnections();
    server.close();
  });
  const address = server.address();
  return { url: `http://127.0.0.1:${typeof address === "object" ? address?.port : 0}` };
}

describe("many generations on one stream", () => {
  it("are each what they are alone, whoever else comes, goes or is refused", async () => {
    const random = randomFrom(20_261_123);
    const { backend, engine, url } = await daemon({ maxRows: 8, maxQueued: 64, kvTokens: 65_536, maxStepTokens: 96 });
    const alone = client(url, undefined, { link: "none" });
    const turns = Array.from({ length: 160 }, (_, index) => {
      const length = 1 + random(60);
      const promptIds = Uint32Array.from({ length }, () => random(1000));
      const logprobs = random(5) === 0 ? 2 : undefined;
      return {
        request: (id: string): GenerationRequest =>
          generationRequest({
            id,
            promptIds,
            logprobs,
            maxNewTokens: 1 + random(40),
            sampling: { ...greedy, seed: index },
          }),
        leaveAt: random(4) === 0 ? random(12) : undefined,
        refused: random(10) === 0,
      };
    });
    const asked = turns.map((turn, index) => turn.request(`turn-${index}`));
    const whole = await Promise.all(asked.map(async (each) => collect(alone.generate(each, never))));

    let waiting = asked.entries();
    const worker = async () => {
      for (const [index, each] of waiting) {
        const turn = turns[index];
        const expected = tokensOf(whole[index] ?? []);
        if (turn?.refused === true) {
          const refused = await outcome(backend.generate({ ...each, maxNewTokens: 9000 }, never));
          expect(refused).toEqual({ tokens: [], end: "context_length_exceeded" });
        }
        const control = new AbortController();
        const seen: GenerationEvent[] = [];
        const read = (async () => {
          for await (const event of backend.generate({ ...each, id: `${each.id}-shared` }, control.signal)) {
            seen.push(event);
            if (seen.length === turn?.leaveAt) control.abort();
            // Readers fall behind by turns.
            if (index % 3 === 0) await setImmediate();
          }
        })();
        if (turn?.leaveAt === 0) control.abort();
        await read.catch((error: unknown) => expect(error).toMatchObject({ code: "cancelled" }));
        const got = tokensOf(seen);
        expect(got).toEqual(expected.slice(0, got.length));
        if (control.signal.aborted) continue;
        expect(got).toEqual(expected);
        expect(seen.at(-1)).toMatchObject({ type: "finish", usage: { completionTokens: expected.length } });
        const scored = seen.flatMap((event) => (event.type === "tokens" ? (event.logprobs ?? []) : []));
        expect(scored).toHaveLength(each.logprobs === undefined ? 0 : expected.length);
      }
    };
    waiting = asked.entries();
    await Promise.all(Array.from({ length: 24 }, worker));
    expect(await gauge(url, "open_streams")).toBe(1);
    await expectIdle(engine);
    expect(await gauge(url, "open_answers")).toBe(0);
  });

  it("end each in exactly one way when their cancel races with their finish", async () => {
    const random = randomFrom(7);
    const { backend, engine } = await daemon({ maxRows: 8, maxQueued: 200 });
    const ends = await Promise.all(
      Array.from({ length: 150 }, async (_, index) => {
        const control = new AbortController();
        const end = outcome(backend.generate(generationRequest({ maxNewTokens: 2 }), control.signal));
        // Some leave at once and some never; the others at any moment around their last token.
        if (index % 10 === 0) return (await end).end;
        for (let turn = index % 10 === 1 ? 0 : random(60); turn > 0; turn--) await setImmediate();
        control.abort();
        return (await end).end;
      }),
    );
    expect([...new Set(ends)].toSorted()).toEqual(["cancelled", "finish"]);
    await expectIdle(engine);
    // The link has lost nothing over it.
    expect(await outcome(backend.generate(generationRequest(), never))).toMatchObject({ end: "finish" });
  });

  it("are all cancelled within 100 ms when it closes", async () => {
    const { engine, url } = await daemon({ maxRows: 16, kvTokens: 65_536 }, { stepMs: 2 });
    const delays: number[] = [];
    for (let turn = 0; turn < 9; turn++) {
      const stream = await openStream(url);
      for (let number = 1; number <= 16; number++) {
        const id = `${turn}-${number}`;
        await post(url, { id, maxNewTokens: 4000, stream: { id: stream.id, number } });
      }
      const at = performance.now();
      stream.call.destroy();
      await engine.until(() => engine.cancelled.size === 16 * (turn + 1));
      delays.push(performance.now() - at);
    }
    expect(delays.toSorted((a, b) => a - b)[4]).toBeLessThan(100);
    await expectIdle(engine);
  });
});

describe("a stream that breaks", () => {
  /** Carries bytes to a daemon; `cut` stops the stream's connection at a byte, as a machine that dies does. */
  async function proxy(target: () => string) {
    const sockets = new Set<Socket>();
    const state = { left: Number.POSITIVE_INFINITY };
    const server = createTcpServer({ noDelay: true }, (caller) => {
      const { hostname, port } = new URL(target());
      const upstream = connect({ host: hostname, port: Number(port), noDelay: true });
      let streams = false;
      const end = () => {
        caller.destroy();
        upstream.destroy();
      };
      for (const socket of [caller, upstream]) {
        sockets.add(socket);
        socket.on("error", end);
        socket.on("close", end);
      }
      caller.on("data", (bytes) => {
        streams ||= bytes.includes("POST /v1/streams");
        upstream.write(bytes);
      });
      upstream.on("data", (bytes) => {
        if (!streams || bytes.length <= state.left) {
          if (streams) state.left -= bytes.length;
          caller.write(bytes);
          return;
        }
        caller.end(bytes.subarray(0, state.left), () => caller.destroy());
        upstream.destroy();
        state.left = Number.POSITIVE_INFINITY;
      });
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    cleanUps.push(async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
    });
    const address = server.address();
    return {
      url: `http://127.0.0.1:${typeof address === "object" ? address?.port : 0}`,
      cutAfter(bytes: number) {
        state.left = bytes;
      },
    };
  }

  it("at any byte breaks its 16 answers where they are, frees their rows, and the next answers are whole", async () => {
    const random = randomFrom(99);
    const { engine, url, backend: direct } = await daemon({ maxRows: 16, kvTokens: 65_536 }, { stepMs: 1 });
    const between = await proxy(() => url);
    const backend = client(between.url);
    const prompts = Array.from({ length: 16 }, (_, row) => Uint32Array.of(row, 1, 2, 3));
    const ask = (promptIds: Uint32Array) => generationRequest({ promptIds, maxNewTokens: 60 });
    const whole = await Promise.all(prompts.map((ids) => outcome(direct.generate(ask(ids), never))));
    for (let turn = 0; turn < 12; turn++) {
      // Beyond the head and the first lines, within what sixteen rows say in sixty steps.
      between.cutAfter(1200 + random(6000));
      // All begin with one step, so that none is at its end before the cut.
      engine.pause();
      const wanted = engine.submitted.length + 16;
      const answers = prompts.map((ids) => outcome(backend.generate(ask(ids), never)));
      await engine.until(() => engine.submitted.length === wanted);
      engine.resume();
      const ends = await Promise.all(answers);
      expect(ends.map(({ end }) => end)).toEqual(Array(16).fill("backend_stream_broken"));
      for (const [row, { tokens }] of ends.entries()) {
        expect(tokens).toEqual(whole[row]?.tokens.slice(0, tokens.length));
      }
      await expectIdle(engine);
      expect(await Promise.all(prompts.map((ids) => outcome(backend.generate(ask(ids), never))))).toEqual(whole);
    }
  });

  it("because the daemon was killed and started again is followed by another", async () => {
    const first = await daemon({}, { stepMs: 1 });
    let target = first.url;
    const backend = client((await proxy(() => target)).url);
    const whole = await outcome(backend.generate(generationRequest(), never));
    const running = outcome(backend.generate(generationRequest({ maxNewTokens: 4000 }), never));
    await first.engine.until(() => first.engine.stats().runningRows === 1);
    const second = await daemon();
    target = second.url;
    await first.close();
    cleanUps.splice(0, 1);
    expect((await running).end).toBe("draining");
    // The news of closed connections may be on its way; whoever meets one tries again.
    const again = ["backend_stream_broken", "backend_unreachable"];
    let answer = await outcome(backend.generate(generationRequest(), never));
    while (again.includes(answer.end)) answer = await outcome(backend.generate(generationRequest(), never));
    expect(answer).toEqual(whole);
    expect(await gauge(second.url, "open_streams")).toBe(1);
  });

  it("without its gateway's knowledge is opened anew, at no cost to who asks", async () => {
    const [first, second] = [await daemon(), await daemon()];
    let target = first.url;
    // What is open stays where it is; new requests go elsewhere, as behind an address that moved.
    const here = await front((_) => target);
    const backend = client(here.url);
    const whole = await outcome(backend.generate(generationRequest(), never));
    target = second.url;
    const answers = Array.from({ length: 4 }, () => outcome(backend.generate(generationRequest(), never)));
    expect(await Promise.all(answers)).toEqual(Array(4).fill(whole));
    expect(await gauge(second.url, "open_streams")).toBe(1);
    expect(await gauge(first.url, "cancelled_total")).toBe(0);
  });
});

describe("a reader of a stream", () => {
  it("that stalls loses it and its generations; other streams go on, and the daemon keeps no more than the bound", async () => {
    const { url, engine, backend } = await daemon(
      { streamBufferBytes: 64 * 1024, kvTokens: 131_072 },
      { contextLength: 65_536 },
    );
    const stream = await openStream(url);
    expect(
      await post(url, { id: "slow", maxNewTokens: 60_000, logprobs: 20, stream: { id: stream.id, number: 1 } }),
    ).toEqual({ status: 204, code: undefined });
    const other = outcome(backend.generate(generationRequest({ maxNewTokens: 3000 }), never));
    await engine.until(() => engine.cancelled.size === 1);
    expect(await other).toMatchObject({ end: "finish", tokens: expect.objectContaining({ length: 3000 }) });
    await expectIdle(engine);
    expect(await gauge(url, "slow_readers_total")).toBe(1);
    await expect.poll(() => gauge(url, "open_streams"), patient).toBe(1);
  });
});

describe("a stream", () => {
  it("stays open without generations, and says that it lives", async () => {
    const { url } = await daemon({ heartbeatMs: 5 });
    const stream = await openStream(url);
    const seen: unknown[] = [];
    for await (const line of stream.lines) {
      seen.push(line);
      if (seen.length === 3) break;
    }
    expect(seen).toEqual([
      { step: 1, rows: [] },
      { step: 2, rows: [] },
      { step: 3, rows: [] },
    ]);
  });

  it("carries a line a step for all its generations", async () => {
    const { url, engine } = await daemon();
    engine.pause();
    const stream = await openStream(url);
    for (const number of [1, 2, 3]) {
      expect(await post(url, { id: `g${number}`, stream: { id: stream.id, number } })).toMatchObject({ status: 204 });
    }
    engine.resume();
    const lines: Array<{ rows: number[][]; after?: unknown[]; before?: unknown[] }> = [];
    for await (const line of stream.lines) {
      // A heartbeat may come first, where the machine is slow.
      if (line.rows.length > 0) lines.push(line);
      if (line.after?.length === 3) break;
    }
    expect(lines.map(({ rows }) => rows.map(([number]) => number))).toEqual([
      [1, 2, 3],
      [1, 2, 3],
      [1, 2, 3],
      [1, 2, 3],
    ]);
    expect(lines[0]?.before).toHaveLength(3);
    // The hot line holds nothing but the step and its rows.
    expect(Object.keys(lines[1] ?? {})).toEqual(["step", "rows"]);
  });

  it("is refused above the limit, and what needed it is answered on its own", async () => {
    const { url, backend } = await daemon({ maxStreams: 1 });
    const stream = await openStream(url);
    expect(await openStream(url)).toMatchObject({ status: 503, error: "too_many_streams" });
    expect(await outcome(backend.generate(generationRequest(), never))).toMatchObject({ end: "finish" });
    stream.call.destroy();
    await expect.poll(() => gauge(url, "open_streams"), patient).toBe(0);
    expect(await outcome(backend.generate(generationRequest(), never))).toMatchObject({ end: "finish" });
    expect(await gauge(url, "open_streams")).toBe(1);
  });

  it("needs the pool key", async () => {
    const { url } = await daemon({ poolKey: "secret" });
    expect(await openStream(url)).toMatchObject({ status: 401, error: "invalid_pool_key" });
    expect(await openStream(url, { authorization: "Bearer secret" })).toMatchObject({ status: 200 });
  });

  it("outlives a drain's last answer, and ends with the daemon; a draining one opens none", async () => {
    const served = await daemon({ drainMs: 60_000 }, { stepMs: 1 });
    const { url, engine } = served;
    const stream = await openStream(url);
    await post(url, { id: "g", maxNewTokens: 30, stream: { id: stream.id, number: 1 } });
    await engine.until(() => engine.stats().runningRows === 1);
    expect((await request(`${url}/v1/drain`, { method: "POST" })).statusCode).toBe(202);
    expect(await openStream(url)).toMatchObject({ status: 503, error: "draining" });
    expect(await post(url, { id: "h", stream: { id: stream.id, number: 2 } })).toEqual({
      status: 503,
      code: "draining",
    });
    const tokens: number[] = [];
    for await (const line of stream.lines) {
      for (const [, ...ids] of line.rows) tokens.push(...ids);
      if (line.after !== undefined) {
        expect(line.after).toEqual([expect.objectContaining({ id: 1, type: "finish" })]);
        break;
      }
    }
    expect(tokens).toHaveLength(30);
    await served.close();
    cleanUps.splice(0, 1);
  });

  it("takes no number twice, and no generation once it is gone", async () => {
    const { url, engine } = await daemon();
    engine.pause();
    const stream = await openStream(url);
    const at = { id: stream.id, number: 1 };
    expect(await post(url, { id: "a", stream: at })).toMatchObject({ status: 204 });
    expect(await post(url, { id: "b", stream: at })).toEqual({ status: 409, code: "duplicate_id" });
    expect(await post(url, { id: "c", stream: { id: "another", number: 1 } })).toEqual({
      status: 409,
      code: "unknown_stream",
    });
    expect(await post(url, { id: "d", stream: { id: stream.id, number: 0 } })).toEqual({
      status: 400,
      code: "invalid_value",
    });
    stream.call.destroy();
    await engine.until(() => engine.cancelled.size === 1);
    expect(await post(url, { id: "e", stream: at })).toEqual({ status: 409, code: "unknown_stream" });
  });

  it("tells of a cancel that another asked for", async () => {
    const { url, engine, backend } = await daemon({}, { stepMs: 1 });
    const asked = generationRequest({ maxNewTokens: 4000 });
    const answer = outcome(backend.generate(asked, never));
    await engine.until(() => engine.stats().runningRows === 1);
    await request(`${url}/v1/generate/${asked.id}`, { method: "DELETE" });
    expect(await answer).toMatchObject({ end: "cancelled" });
    await expectIdle(engine);
  });
});

it("a cancel that overtakes its generate is kept for it, once", async () => {
  const { url, engine } = await daemon();
  engine.pause();
  const stream = await openStream(url);
  const early = { id: "early", stream: { id: stream.id, number: 1 } };
  await request(`${url}/v1/generate/early`, { method: "DELETE" });
  expect(await post(url, early)).toEqual({ status: 409, code: "cancelled" });
  // The warm-up's alone.
  expect(engine.submitted).toHaveLength(1);
  expect(await post(url, early)).toEqual({ status: 204, code: undefined });
});

it("a daemon that knows no streams is asked for an answer each, until it comes back as a newer one", async () => {
  const { url, engine } = await daemon();
  let old = true;
  const asked: string[] = [];
  const here = await front((incoming) => {
    asked.push(`${incoming.method} ${incoming.url}`);
    return old && incoming.url === "/v1/streams" ? undefined : url;
  });
  const backend = client(here.url);
  const answers = await Promise.all(
    Array.from({ length: 6 }, () => outcome(backend.generate(generationRequest({ logprobs: 1 }), never))),
  );
  expect(new Set(answers.map(({ end }) => end))).toEqual(new Set(["finish"]));
  const control = new AbortController();
  const left = outcome(backend.generate(generationRequest({ maxNewTokens: 4000 }), control.signal));
  await engine.until(() => engine.stats().runningRows === 1);
  control.abort();
  expect(await left).toMatchObject({ end: "cancelled" });
  await expectIdle(engine);
  expect(asked.filter((line) => line === "POST /v1/streams")).toHaveLength(1);

  old = false;
  await backend.info(never);
  expect(await outcome(backend.generate(generationRequest(), never))).toMatchObject({ end: "finish" });
  expect(await gauge(url, "open_streams")).toBe(1);
});
