import { once } from "node:events";
import { connect } from "node:net";
import { expect, test } from "vitest";
import { say, scriptedDispatcher } from "../testing/dispatcher.ts";
import { startTestGateway, testKey } from "../testing/gateway.ts";

/** Everything that a server sends to one request, byte for byte, until it closes the connection. */
async function exchange(port: number, version: "1.0" | "1.1", body: object): Promise<{ head: string; body: Buffer }> {
  const text = JSON.stringify(body);
  const socket = connect(port, "127.0.0.1");
  const chunks: Buffer[] = [];
  socket.on("data", (chunk: Buffer) => chunks.push(chunk));
  socket.write(
    `POST /v1/chat/completions HTTP/${version}\r\nhost: test\r\nauthorization: Bearer ${testKey}\r\nconnection: close\r\n` +
      `content-type: application/json\r\ncontent-length: ${Buffer.byteLength(text)}\r\n\r\n${text}`,
  );
  await once(socket, "close");
  const all = Buffer.concat(chunks);
  const end = all.indexOf("\r\n\r\n");
  return { head: all.subarray(0, end).toString("latin1").toLowerCase(), body: all.subarray(end + 4) };
}

/** A body in HTTP/1.1's chunked coding. Throws where it is none, or does not end with its last chunk. */
function dechunked(body: Buffer): string {
  const parts: Buffer[] = [];
  let at = 0;
  for (;;) {
    const line = body.indexOf("\r\n", at);
    const size = Number.parseInt(body.subarray(at, line).toString("latin1"), 16);
    const start = line + 2;
    if (line < 0 || Number.isNaN(size) || body.subarray(start + size, start + size + 2).toString("latin1") !== "\r\n") {
      throw new Error(`no chunk at byte ${at}`);
    }
    at = start + size + 2;
    if (size === 0) break;
    parts.push(body.subarray(start, start + size));
  }
  if (at !== body.length) throw new Error("something follows the last chunk");
  return Buffer.concat(parts).toString("utf8");
}

const chat = { model: "tiny", messages: [{ role: "user", content: "hello" }] };
const contentOf = (events: string): string =>
  events
    .split("\n\n")
    .filter((event) => event.startsWith("data: {"))
    .map((event) => JSON.parse(event.slice("data: ".length)).choices[0]?.delta.content ?? "")
    .join("");

test("a stream is in whole chunks, counted in bytes, also where its text is not ASCII", async () => {
  await using gateway = await startTestGateway(scriptedDispatcher(say("Grüße, ", "世界", " 🚆")));
  const { head, body } = await exchange(gateway.listening.port, "1.1", { ...chat, stream: true });
  expect(head).toContain("transfer-encoding: chunked");
  const events = dechunked(body);
  expect(contentOf(events)).toBe("Grüße, 世界 🚆");
  expect(events).toMatch(/data: \[DONE\]\n\n$/);
});

test("a caller of HTTP/1.0, which has no chunks, gets the stream as it is", async () => {
  await using gateway = await startTestGateway(scriptedDispatcher(say("Grüße")));
  const { head, body } = await exchange(gateway.listening.port, "1.0", { ...chat, stream: true });
  expect(head).not.toContain("transfer-encoding");
  const events = body.toString("utf8");
  expect(events).toMatch(/^data: /);
  expect(contentOf(events)).toBe("Grüße");
  expect(events).toMatch(/data: \[DONE\]\n\n$/);
});

test("a whole answer says its length in bytes", async () => {
  await using gateway = await startTestGateway(scriptedDispatcher(say("Grüße, 世界")));
  const { head, body } = await exchange(gateway.listening.port, "1.1", chat);
  expect(head).toContain(`content-length: ${body.length}`);
  expect(JSON.parse(body.toString("utf8")).choices[0].message.content).toBe("Grüße, 世界");
});
