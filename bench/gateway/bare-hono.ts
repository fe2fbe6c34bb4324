import type { IncomingMessage, ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { createAdaptorServer } from "@hono/node-server";
import { Hono } from "hono";
import { Pool } from "undici";

/**
 * The least that a proxy in Hono does, with the same packages as Sluice: parse the body, ask the upstream through undici
 * with the caller's signal, hand the answer on. No keys, no limits, no routing, no metrics. `node bare-hono.ts UPSTREAM PORT`
 */
const [upstream = "", port = "0"] = process.argv.slice(2);
const pool = new Pool(upstream, { connections: 1024, pipelining: 1, headersTimeout: 0, bodyTimeout: 0 });
const app = new Hono<{ Bindings: { incoming: IncomingMessage; outgoing: ServerResponse } }>();
app.get("/healthz", (c) => c.text("ok"));
app.post("/v1/chat/completions", async (c) => {
  const body: unknown = JSON.parse(await c.req.text());
  const answer = await pool.request({
    method: "POST",
    path: "/v1/chat/completions",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal: c.req.raw.signal,
  });
  const contentType = answer.headers["content-type"];
  const headers = { "content-type": typeof contentType === "string" ? contentType : "application/json" };
  if (headers["content-type"].startsWith("application/json")) {
    return new Response(await answer.body.text(), { status: answer.statusCode, headers });
  }
  return new Response(webStream(answer.body), { status: answer.statusCode, headers });
});

/** What a Hono handler returns, pulled chunk by chunk; measured against `Readable.toWeb`, this costs less. */
function webStream(body: AsyncIterable<Uint8Array>): ReadableStream<Uint8Array> {
  const chunks = body[Symbol.asyncIterator]();
  return new ReadableStream({
    async pull(controller) {
      const next = await chunks.next();
      if (next.done === true) controller.close();
      else controller.enqueue(next.value);
    },
    async cancel() {
      await chunks.return?.();
    },
  });
}

const server = createAdaptorServer({ fetch: app.fetch });
server.listen(Number(port), "127.0.0.1", () => process.send?.({ port: (server.address() as AddressInfo).port }));
