import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { setImmediate } from "node:timers/promises";
import { afterEach, describe, expect, it } from "vitest";
import { collect, generationRequest, tokensOf } from "../../../test/support/requests.ts";
import { cleanUps, client, closeServed } from "../../../test/support/served-daemon.ts";
import type { GenerationEvent } from "../backend.ts";
import { Link } from "./client-link.ts";

afterEach(closeServed);

const never = new AbortController().signal;
const patient = { timeout: 20_000 };
const opened = '{"stream":"s"}\n';
const broken = "backend_stream_broken";
const usage = { promptTokens: 40, cachedTokens: 0, completionTokens: 2 };
const finish = (id: number) => `{"id":${id},"type":"finish","reason":"length","usage":${JSON.stringify(usage)}}`;

/** The daemon's side of a link, written by hand: what it sends, byte for byte, and when. */
async function peer(onGenerate: (response: ServerResponse) => void = (response) => response.writeHead(204).end()) {
  const streams: ServerResponse[] = [];
  const asked: string[] = [];
  const waiters = new Set<() => void>();
  const server = createServer((request: IncomingMessage, response: ServerResponse) => {
    request.resume();
    request.once("end", () => {
      asked.push(`${request.method} ${request.url}`);
      if (request.url === "/v1/streams") {
        response.useChunkedEncodingByDefault = false;
        response.writeHead(200, { "content-type": "application/x-ndjson" }).flushHeaders();
        streams.push(response);
      } else if (request.method === "DELETE") response.writeHead(204).end();
      else onGenerate(response);
      for (const check of waiters) check();
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  cleanUps.push(async () => {
    server.closeAllConnections();
    server.close();
  });
  const address = server.address();
  const url = `http://127.0.0.1:${typeof address === "object" ? address?.port : 0}`;
  const until = (condition: () => boolean) =>
    new Promise<void>((resolve) => {
      const check = () => {
        if (!condition()) return;
        waiters.delete(check);
        resolve();
      };
      waiters.add(check);
      check();
    });
  return {
    url,
    asked,
    until,
    /** Sends on the newest stream; resolves when the socket has taken it. */
    send(bytes: string | Uint8Array): Promise<void> {
      return new Promise((resolve) => streams.at(-1)?.write(bytes, () => resolve()));
    },
    end: () => streams.at(-1)?.end(),
    reset: () => streams.at(-1)?.socket?.resetAndDestroy(),
    streams: () => streams.length,
    generates: (count: number) => until(() => asked.filter((line) => line === "POST /v1/generate").length >= count),
  };
}

/** What a reader got before its answer ended or broke. */
async function told(events: AsyncIterable<GenerationEvent>, onEvent = (_: GenerationEvent): void => {}) {
  const seen: GenerationEvent[] = [];
  try {
    for await (const event of events) {
      seen.push(event);
      onEvent(event);
    }
    return { tokens: tokensOf(seen), types: seen.map(({ type }) => type), code: undefined };
  } catch (error) {
    const code = error instanceof Error && "code" in error ? error.code : error;
    return { tokens: tokensOf(seen), types: seen.map(({ type }) => type), code };
  }
}

describe("a link's lines", () => {
  const script = [
    '{"step":1,"before":[{"id":1,"type":"accepted","cachedTokens":0},{"id":2,"type":"accepted","cachedTokens":16}],"rows":[]}\n',
    '{"step":2,"rows":[[1,501],[2,7]]}\n{"step":3,"rows":[]}\n',
    '{"step":4,"before":[{"id":3,"type":"progress","prefilled":8}],"rows":[[2,70000,8],[1,502]],',
    `"after":[${finish(2)},${finish(1)}]}\n`,
    '{"step":5,"rows":[],"after":[{"id":3,"type":"error","code":"x","message":"m\u00fcde","retryable":true}]}\n',
  ].join("");

  async function served() {
    const here = await peer();
    return { ...here, backend: client(here.url) };
  }

  it("may be split at any byte", async () => {
    const bytes = Buffer.from(opened + script);
    for (let at = 1; at < bytes.length; at++) {
      const said: unknown[][] = [[], [], []];
      const closed = Promise.withResolvers<void>();
      const attached = Promise.withResolvers<void>();
      const link = await Link.open(
        {
          status: 200,
          header: () => undefined,
          body: (async function* () {
            if (at < opened.length) {
              yield bytes.subarray(0, at);
              yield bytes.subarray(at, opened.length);
            } else yield bytes.subarray(0, opened.length);
            // Numbers are given in the order of asking, before anything names them.
            await attached.promise;
            if (at > opened.length) yield bytes.subarray(opened.length, at);
            yield bytes.subarray(Math.max(at, opened.length));
          })(),
          destroy() {},
        },
        1024,
        closed.resolve,
      );
      const numbers = said.map((events) =>
        link?.attach({
          take: (event) => events.push(event),
          takeTokens: (ids) => events.push(...ids),
          wake: () => undefined,
          lost: ({ code }) => events.push(code),
        }),
      );
      expect(numbers).toEqual([1, 2, 3]);
      attached.resolve();
      await closed.promise;
      // The link ends behind the script; nobody here has left it before.
      expect(said, `split at ${at}`).toEqual([
        [expect.objectContaining({ type: "accepted" }), 501, 502, expect.objectContaining({ type: "finish" }), broken],
        [
          expect.objectContaining({ cachedTokens: 16 }),
          7,
          70000,
          8,
          expect.objectContaining({ type: "finish" }),
          broken,
        ],
        [{ type: "progress", prefilled: 8 }, expect.objectContaining({ type: "error", message: "m\u00fcde" }), broken],
      ]);
    }
  });

  it("may come byte by byte", async () => {
    const here = await served();
    const answers = [1, 2, 3].map(() => told(here.backend.generate(generationRequest(), never)));
    await here.until(() => here.streams() === 1);
    for (const byte of Buffer.from(opened)) await here.send(Uint8Array.of(byte));
    await here.generates(3);
    for (const byte of Buffer.from(script)) {
      await here.send(Uint8Array.of(byte));
      await setImmediate();
    }
    expect(await Promise.all(answers)).toEqual([
      { tokens: [501, 502], types: expect.arrayContaining(["accepted", "finish"]), code: undefined },
      { tokens: [7, 70000, 8], types: expect.arrayContaining(["accepted", "finish"]), code: undefined },
      { tokens: [], types: ["progress", "error"], code: undefined },
    ]);
  });

  it("may overtake the answer of the generate they speak of", async () => {
    const held: ServerResponse[] = [];
    const here = await peer((response) => held.push(response));
    const answer = told(client(here.url).generate(generationRequest(), never));
    await here.until(() => here.streams() === 1);
    await here.send(opened);
    await here.generates(1);
    await here.send(`{"step":1,"rows":[[1,5,6]],"after":[${finish(1)}]}\n`);
    expect(await answer).toMatchObject({ tokens: [5, 6], code: undefined });
    for (const response of held) response.writeHead(204).end();
  });

  it("of generations that nobody has are nobody's", async () => {
    const here = await served();
    const answer = told(here.backend.generate(generationRequest(), never));
    await here.until(() => here.streams() === 1);
    await here.send(opened);
    await here.generates(1);
    await here.send(`{"step":1,"rows":[[9,1],[1,5]],"after":[${finish(8)},${finish(1)}]}\n`);
    expect(await answer).toMatchObject({ tokens: [5], code: undefined });
  });

  it.each([
    ["is not JSON", "%%%\n"],
    ["is no frame", '{"type":"accepted"}\n'],
    ["has an event nobody knows", '{"step":2,"rows":[],"after":[{"id":1,"type":"surprise"}]}\n'],
    ["has tokens that are no ids", '{"step":2,"rows":[[1,-5]]}\n'],
    ["has a row without a token", '{"step":2,"rows":[[1]]}\n'],
    ["shows that one is missing", '{"step":3,"rows":[[1,6]]}\n'],
    ["comes twice", '{"step":1,"rows":[[1,5]]}\n'],
    ["is beyond the bound", `{"step":2,"rows":[[1${",5".repeat(3_000_000)}]]}\n`],
    ["is not UTF-8", Uint8Array.of(0xff, 0x0a)],
    ["is the end", "end"],
    ["is cut", '{"step":2,"rows":[[1,6'],
    ["is followed by a reset", "reset"],
  ] as const)("break every answer on it, behind the tokens that came, when one %s", async (_, line) => {
    const here = await served();
    let events = 0;
    const answers = [1, 2].map(() => told(here.backend.generate(generationRequest(), never), () => events++));
    await here.until(() => here.streams() === 1);
    await here.send(opened);
    await here.generates(2);
    await here.send('{"step":1,"rows":[[1,5],[2,9]]}\n');
    await expect.poll(() => events, patient).toBe(2);
    if (line === "end") here.end();
    else if (line === "reset") here.reset();
    else await here.send(line);
    if (line === '{"step":2,"rows":[[1,6') here.end();
    expect(await Promise.all(answers)).toEqual([
      { tokens: [5], types: ["tokens"], code: "backend_stream_broken" },
      { tokens: [9], types: ["tokens"], code: "backend_stream_broken" },
    ]);
    // The next one finds a new link.
    const next = told(here.backend.generate(generationRequest(), never));
    await here.until(() => here.streams() === 2);
    await here.send(opened);
    await here.generates(3);
    await here.send(`{"step":1,"rows":[[1,6]],"after":[${finish(1)}]}\n`);
    expect(await next).toMatchObject({ tokens: [6], code: undefined });
  });

  it("that run past what was asked for end that answer alone, and its generation", async () => {
    const here = await served();
    const [long, other] = [generationRequest({ maxNewTokens: 2 }), generationRequest()];
    const answers = [long, other].map((request) => told(here.backend.generate(request, never)));
    await here.until(() => here.streams() === 1);
    await here.send(opened);
    await here.generates(2);
    await here.send('{"step":1,"rows":[[1,5,6],[2,8]]}\n{"step":2,"rows":[[1,7],[2,9]]}\n');
    expect(await answers[0]).toMatchObject({ code: "backend_stream_broken" });
    await here.until(() => here.asked.includes(`DELETE /v1/generate/${long.id}`));
    await here.send(`{"step":3,"rows":[[1,1]],"after":[${finish(2)}]}\n`);
    expect(await answers[1]).toMatchObject({ tokens: [8, 9], code: undefined });
    expect(here.asked).not.toContain(`DELETE /v1/generate/${other.id}`);
  });

  it("that stop coming at all, heartbeats too, break it", async () => {
    const here = await peer();
    const answer = told(client(here.url, undefined, { silenceMs: 500 }).generate(generationRequest(), never));
    await here.until(() => here.streams() === 1);
    await here.send(opened);
    expect(await answer).toMatchObject({ code: "backend_stream_broken" });
  });
});

describe("a reader", () => {
  async function reading() {
    const here = await peer();
    const request = generationRequest({ maxNewTokens: 100 });
    const control = new AbortController();
    const events = client(here.url).generate(request, control.signal)[Symbol.asyncIterator]();
    const first = events.next();
    await here.until(() => here.streams() === 1);
    await here.send(opened);
    await here.generates(1);
    await here.send('{"step":1,"before":[{"id":1,"type":"accepted","cachedTokens":0}],"rows":[]}\n');
    expect(await first).toMatchObject({ value: { type: "accepted" } });
    return { here, request, control, events };
  }

  it("gets the tokens of some steps that were read at once as one event", async () => {
    const { here, events } = await reading();
    const rest = told({ [Symbol.asyncIterator]: () => events });
    const steps = [2, 3, 4, 5].map((step) => `{"step":${step},"rows":[[1,${step}]]}\n`).join("");
    await here.send(`${steps}{"step":6,"rows":[[1,6]],"after":[${finish(1)}]}\n`);
    expect(await rest).toEqual({ tokens: [2, 3, 4, 5, 6], types: ["tokens", "finish"], code: undefined });
    expect(await events.next()).toMatchObject({ done: true });
  });

  it("that leaves says so with one DELETE, and what still comes is ignored", async () => {
    const { here, request, control, events } = await reading();
    const pending = told({ [Symbol.asyncIterator]: () => events });
    control.abort();
    expect(await pending).toMatchObject({ code: "cancelled" });
    await here.until(() => here.asked.includes(`DELETE /v1/generate/${request.id}`));
    await here.send(`{"step":2,"rows":[[1,9]],"after":[${finish(1)}]}\n`);
    expect(await events.next()).toMatchObject({ done: true });
    expect(here.asked.filter((line) => line.startsWith("DELETE"))).toHaveLength(1);
  });

  it("that returns without a word does too", async () => {
    const { here, request, events } = await reading();
    expect(await events.return?.()).toMatchObject({ done: true });
    await here.until(() => here.asked.includes(`DELETE /v1/generate/${request.id}`));
    expect(await events.next()).toMatchObject({ done: true });
  });

  it("whose signal aborts behind the finish cancels nothing", async () => {
    const { here, control, events } = await reading();
    const rest = told({ [Symbol.asyncIterator]: () => events });
    await here.send(`{"step":2,"rows":[],"after":[${finish(1)}]}\n`);
    expect(await rest).toMatchObject({ code: undefined });
    control.abort();
    expect(here.asked.filter((line) => line.startsWith("DELETE"))).toEqual([]);
  });
});

describe("a sink", () => {
  async function sinks() {
    const here = await peer();
    const backend = client(here.url);
    const log: string[] = [];
    const stepEnd = () => log.push("end");
    const control = new AbortController();
    const start = (name: string, tokens: (ids: readonly number[]) => void = () => {}) => {
      const sink = {
        tokens: (ids: readonly number[]) => {
          log.push(`${name} ${ids.join(",")}`);
          tokens(ids);
        },
        stepEnd,
      };
      return (async () => {
        try {
          for await (const event of backend.generate(generationRequest(), control.signal, sink)) {
            log.push(`${name} ${event.type}`);
          }
          return "ended";
        } catch (error) {
          return error instanceof Error && "code" in error ? error.code : error;
        }
      })();
    };
    const open = async (count: number) => {
      await here.until(() => here.streams() === 1);
      await here.send(opened);
      await here.generates(count);
    };
    return { here, log, control, start, open };
  }

  it("gets tokens between the iterator's events, and one end a read for all that share it", async () => {
    const { here, log, start, open } = await sinks();
    const answers = [start("a"), start("b")];
    await open(2);
    const accepted = [1, 2].map((id) => `{"id":${id},"type":"accepted","cachedTokens":0}`);
    await here.send(`{"step":1,"before":[${accepted.join(",")}],"rows":[]}\n`);
    await expect.poll(() => log.length, patient).toBe(2);
    await here.send('{"step":2,"rows":[[1,5],[2,6]]}\n{"step":3,"rows":[[1,7]]}\n');
    await expect.poll(() => log.length, patient).toBe(6);
    await here.send(`{"step":4,"rows":[[2,8]],"after":[${finish(1)},${finish(2)}]}\n`);
    expect(await Promise.all(answers)).toEqual(["ended", "ended"]);
    expect(log).toEqual(["a accepted", "b accepted", "a 5", "b 6", "a 7", "end", "b 8", "end", "b finish", "a finish"]);
  });

  it("gets nothing before the events that came first were read", async () => {
    const { here, log, start, open } = await sinks();
    const answer = start("a");
    await open(1);
    await here.send(
      `{"step":1,"before":[{"id":1,"type":"accepted","cachedTokens":0}],"rows":[[1,5]],"after":[${finish(1)}]}\n`,
    );
    expect(await answer).toBe("ended");
    expect(log).toEqual(["a accepted", "a tokens", "a finish"]);
  });

  it("may abort from inside, and hears the end of that step", async () => {
    const { here, log, control, start, open } = await sinks();
    const answer = start("a", () => control.abort());
    await open(1);
    await here.send('{"step":1,"rows":[[1,5]]}\n{"step":2,"rows":[[1,6]]}\n');
    expect(await answer).toBe("cancelled");
    expect(log).toEqual(["a 5", "end"]);
    await here.until(() => here.asked.some((line) => line.startsWith("DELETE")));
  });

  it("hears the end of a step that a faulty line follows", async () => {
    const { here, log, start, open } = await sinks();
    const answer = start("a");
    await open(1);
    await here.send('{"step":1,"rows":[[1,5]]}\n{"step":9,"rows":[[1,6]]}\n');
    expect(await answer).toBe("backend_stream_broken");
    expect(log).toEqual(["a 5", "end"]);
  });

  it("that throws ends its own answer and no other", async () => {
    const { here, start, open } = await sinks();
    const faulty = start("a", () => {
      throw new Error("a fault of the sink");
    });
    const other = start("b");
    await open(2);
    await here.send('{"step":1,"rows":[[1,5],[2,6]]}\n');
    expect(await faulty).toBe("internal_error");
    await here.send(`{"step":2,"rows":[],"after":[${finish(2)}]}\n`);
    expect(await other).toBe("ended");
  });
});

it("the tokens of a plain answer reach a reader without a sink", async () => {
  const here = await peer();
  const answer = collect(client(here.url).generate(generationRequest(), never));
  await here.until(() => here.streams() === 1);
  await here.send(opened);
  await here.generates(1);
  await here.send(`{"step":1,"rows":[[1,5]],"after":[${finish(1)}]}\n`);
  expect(await answer).toEqual([
    { type: "tokens", ids: [5] },
    { type: "finish", reason: "length", usage },
  ]);
});
