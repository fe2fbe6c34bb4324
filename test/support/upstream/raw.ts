import { once } from "node:events";
import { createServer, type Socket } from "node:net";
import { setImmediate } from "node:timers/promises";

/** What a raw upstream does with a connection once the request is there. */
export type RawStep =
  | { readonly do: "send"; readonly bytes: Uint8Array | string }
  /** Each piece in a turn of the event loop of its own, without waiting for others to fill a packet. */
  | { readonly do: "dribble"; readonly bytes: Uint8Array | string; readonly size: number }
  /** Bytes that are no HTTP, the same for the same seed. */
  | { readonly do: "garbage"; readonly length: number; readonly seed: number }
  /** Nothing more until the other side leaves. */
  | { readonly do: "stall" }
  | { readonly do: "fin" }
  | { readonly do: "reset" };

export interface RawConnection {
  /** What the client has sent so far, as Latin-1. */
  readonly request: () => string;
  /** Resolves when the last step is done; what it sent may still be on its way. */
  readonly played: Promise<void>;
  /** Resolves when the socket is gone. */
  readonly closed: Promise<void>;
}

export interface RawUpstream {
  readonly url: string;
  readonly connections: readonly RawConnection[];
  nextConnection(): Promise<RawConnection>;
  close(): Promise<void>;
}

/**
 * A TCP server that knows no HTTP: it waits for the end of a request's head, then plays the steps. `steps` is asked anew
 * for each connection, counted from 0. `beforeRequest` plays them at once.
 */
export async function startRawUpstream(
  steps: (connection: number) => readonly RawStep[],
  { beforeRequest = false }: { readonly beforeRequest?: boolean } = {},
): Promise<RawUpstream> {
  const connections: RawConnection[] = [];
  const sockets = new Set<Socket>();
  const unclaimed: RawConnection[] = [];
  const waiting: Array<(connection: RawConnection) => void> = [];
  const server = createServer({ noDelay: true }, (socket) => {
    const number = connections.length;
    let request = "";
    const closed = new Promise<void>((resolve) => socket.once("close", () => resolve()));
    const done = Promise.withResolvers<void>();
    const connection = { request: () => request, closed, played: done.promise };
    connections.push(connection);
    sockets.add(socket);
    void closed.then(() => sockets.delete(socket));
    socket.on("error", () => {});
    let played = false;
    const start = (): void => {
      if (played) return;
      played = true;
      const awaited = waiting.shift();
      if (awaited === undefined) unclaimed.push(connection);
      else awaited(connection);
      void play(socket, steps(number)).finally(done.resolve);
    };
    if (beforeRequest) start();
    socket.on("data", (bytes) => {
      request += bytes.toString("latin1");
      if (request.includes("\r\n\r\n")) start();
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  const port = typeof address === "object" && address !== null ? address.port : 0;
  return {
    url: `http://127.0.0.1:${port}/v1`,
    connections,
    nextConnection() {
      const first = unclaimed.shift();
      return first === undefined ? new Promise((resolve) => waiting.push(resolve)) : Promise.resolve(first);
    },
    async close() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}

async function play(socket: Socket, steps: readonly RawStep[]): Promise<void> {
  for (const step of steps) {
    if (socket.destroyed) return;
    switch (step.do) {
      case "send":
        socket.write(bytesOf(step.bytes));
        break;
      case "dribble": {
        const bytes = bytesOf(step.bytes);
        for (let at = 0; at < bytes.byteLength && !socket.destroyed; at += step.size) {
          socket.write(bytes.subarray(at, at + step.size));
          await setImmediate();
        }
        break;
      }
      case "garbage":
        socket.write(noise(step.length, step.seed));
        break;
      case "stall":
        return;
      case "fin":
        socket.end();
        return;
      case "reset":
        // What was sent before should arrive before the reset does.
        await setImmediate();
        socket.resetAndDestroy();
        return;
    }
  }
}

const bytesOf = (bytes: Uint8Array | string): Uint8Array =>
  typeof bytes === "string" ? new TextEncoder().encode(bytes) : bytes;

/** Xorshift32 (Marsaglia, 2003). */
function noise(length: number, seed: number): Uint8Array {
  let state = seed | 1;
  return Uint8Array.from({ length }, () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state & 255;
  });
}

export interface RawAnswerOptions {
  readonly status?: string;
  readonly headers?: Readonly<Record<string, string>>;
  /** `chunked`, each string one chunk; `length`, with a content-length; `close`, ended by the connection's end. */
  readonly framing?: "chunked" | "length" | "close";
  /** Content-length beyond what is sent. */
  readonly missingBytes?: number;
}

/** The bytes of a whole HTTP/1.1 answer, to be sent, dribbled, or cut at any byte. */
export function rawAnswer(parts: readonly string[], options: RawAnswerOptions = {}): Uint8Array {
  const { status = "200 OK", framing = "chunked", missingBytes = 0 } = options;
  const encoder = new TextEncoder();
  const body = parts.join("");
  const headers: Record<string, string> = { "content-type": "text/event-stream", ...options.headers };
  if (framing === "chunked") headers["transfer-encoding"] = "chunked";
  if (framing === "length") headers["content-length"] = String(encoder.encode(body).byteLength + missingBytes);
  if (framing === "close") headers.connection = "close";
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
  const framed =
    framing === "chunked"
      ? `${parts.map((part) => `${encoder.encode(part).byteLength.toString(16)}\r\n${part}\r\n`).join("")}0\r\n\r\n`
      : body;
  return encoder.encode(`HTTP/1.1 ${status}\r\n${lines.join("")}\r\n${framed}`);
}
