import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, expect, test } from "vitest";
import type { HttpOrigin } from "./http.ts";
import { openUndiciOrigin } from "./undici.ts";

const cleanUp: Array<() => unknown> = [];
afterEach(async () => {
  for (const free of cleanUp.splice(0).toReversed()) await free();
});

const never = new AbortController().signal;

async function origin(
  answer: (request: IncomingMessage, response: ServerResponse) => void,
  connections = 8,
): Promise<HttpOrigin> {
  const server = createServer(answer);
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  cleanUp.push(() => {
    server.close();
    server.closeAllConnections();
  });
  const { port } = server.address() as AddressInfo;
  const opened = openUndiciOrigin(`http://127.0.0.1:${port}`, { connectTimeoutMs: 5_000, connections });
  cleanUp.push(() => opened.close());
  return opened;
}

const get = (http: HttpOrigin, signal: AbortSignal = never) => http.request({ method: "GET", path: "/", signal });

test("a body of several chunks is read to its end", async () => {
  const http = await origin((_, response) => {
    response.writeHead(200, { "x-name": "value" });
    for (const word of ["one ", "two ", "three"]) response.write(word);
    response.end();
  });
  const reply = await get(http);
  expect([reply.status, reply.header("x-name")]).toEqual([200, "value"]);
  let text = "";
  for await (const chunk of reply.body) text += Buffer.from(chunk).toString();
  expect(text).toBe("one two three");
});

test("an answer that nobody reads does not fill the memory, and loses nothing", async () => {
  const total = 64 * 1024 * 1024;
  const piece = Buffer.alloc(64 * 1024, "a");
  let sent = 0;
  const stalled = Promise.withResolvers<void>();
  const http = await origin((_, response) => {
    const more = () => {
      while (sent < total) {
        sent += piece.length;
        if (response.write(piece)) continue;
        stalled.resolve();
        response.once("drain", more);
        return;
      }
      response.end();
    };
    more();
  });
  const reply = await get(http);
  await stalled.promise;
  const chunks = reply.body[Symbol.asyncIterator]();
  const first = await chunks.next();
  // Whatever the sockets hold as well: most of it was never asked for.
  expect(sent).toBeLessThan(total / 2);
  let bytes = first.value?.byteLength ?? 0;
  for (let next = await chunks.next(); next.done !== true; next = await chunks.next()) bytes += next.value.byteLength;
  expect(bytes).toBe(total);
});

test("leaving the body, or aborting, closes the connection", async () => {
  for (const leave of ["destroy", "break", "abort"] as const) {
    const closed = Promise.withResolvers<void>();
    const http = await origin((_, response) => {
      response.write("first");
      response.on("close", () => closed.resolve());
    });
    const control = new AbortController();
    const reply = await get(http, control.signal);
    const reading = (async () => {
      for await (const _ of reply.body) {
        if (leave === "break") break;
        if (leave === "destroy") reply.destroy();
        else control.abort(new Error("the caller left"));
      }
    })();
    if (leave === "abort") await expect(reading).rejects.toThrow("the caller left");
    else await reading.catch(() => {});
    await closed.promise;
  }
});

test("a request that is given up while it waits for a connection is never sent", async () => {
  const asked: Array<string | undefined> = [];
  const first = Promise.withResolvers<ServerResponse>();
  const http = await origin((request, response) => {
    asked.push(request.url);
    if (asked.length === 1) first.resolve(response);
    else response.end();
  }, 1);
  const running = http.request({ method: "GET", path: "/first", signal: never });
  const response = await first.promise;
  const control = new AbortController();
  const waiting = http.request({ method: "GET", path: "/second", signal: control.signal });
  control.abort(new Error("given up"));
  await expect(waiting).rejects.toThrow("given up");
  response.end();
  await running;
  await http.request({ method: "GET", path: "/third", signal: never });
  expect(asked).toEqual(["/first", "/third"]);
});

test("a connection that breaks tells so", async () => {
  const http = await origin((_, response) => {
    response.write("begun", () => response.socket?.resetAndDestroy());
  });
  const reply = await get(http);
  const chunks = reply.body[Symbol.asyncIterator]();
  const seen = async () => {
    let text = "";
    for (let next = await chunks.next(); next.done !== true; next = await chunks.next()) {
      text += Buffer.from(next.value).toString();
    }
    return text;
  };
  await expect(seen()).rejects.toThrow();
});
