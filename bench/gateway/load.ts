import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { requestBody } from "./workload.ts";

/**
 * The callers, as cheap as they can be: sockets and a search for the end of the answer, so that one core holds them and
 * the upstreams. A process of its own; takes one `Command` at a time by message.
 */
export interface Endpoint {
  readonly port: number;
  readonly headers: Readonly<Record<string, string>>;
}

export type Command =
  /** `concurrency` callers, each asking again as soon as it has its answer, until `ms` are over; all answers are waited for. */
  | {
      readonly type: "cell";
      readonly endpoint: Endpoint;
      readonly stream: boolean;
      readonly concurrency: number;
      readonly ms: number;
    }
  /** One caller, one request at a time, to each endpoint in turn. */
  | {
      readonly type: "turns";
      readonly endpoints: readonly Endpoint[];
      readonly stream: boolean;
      readonly rounds: number;
    };

export interface CellResult {
  readonly requests: number;
  readonly wallMs: number;
  /** Pieces in which an answer arrived. */
  readonly readsPerRequest: number;
  /** Milliseconds between two of them. */
  readonly gapP50: number;
  readonly gapP99: number;
}

/** For each endpoint, milliseconds of each request: to the whole answer, and to the first event of a stream. */
export interface TurnsResult {
  readonly whole: number[][];
  readonly first: number[][];
}

let turn = 0;

interface Timing {
  readonly ms: number;
  readonly firstMs: number;
  readonly reads: number;
}

/** One kept-alive connection. */
class Caller {
  readonly #head: string;
  readonly #stream: boolean;
  readonly gaps: number[] = [];
  #socket: Socket;
  #settle: { resolve(timing: Timing): void; reject(error: Error): void } | undefined;
  #startedAt = 0;
  #firstAt = 0;
  #lastAt = 0;
  #reads = 0;
  /** Bytes of body that are still to come; undefined before the head, -1 = chunked. */
  #left: number | undefined;
  #text = "";

  constructor({ port, headers }: Endpoint, stream: boolean) {
    const extra = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
    this.#head = `POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:${port}\r\ncontent-type: application/json\r\n${extra.join("")}content-length: `;
    this.#stream = stream;
    this.#socket = connect({ port, host: "127.0.0.1", noDelay: true });
    this.#socket.setEncoding("latin1");
    this.#socket.on("data", (chunk: string) => this.#take(chunk));
    this.#socket.on("error", (error) => this.#fail(error));
    this.#socket.on("close", () => this.#fail(new Error(`the connection closed in an answer: ${this.#text}`)));
  }

  connected(): Promise<unknown> {
    return once(this.#socket, "connect");
  }

  request(): Promise<Timing> {
    const body = requestBody(this.#stream, turn++);
    this.#left = undefined;
    this.#text = "";
    this.#reads = 0;
    this.#firstAt = 0;
    const { promise, resolve, reject } = Promise.withResolvers<Timing>();
    this.#settle = { resolve, reject };
    this.#startedAt = performance.now();
    this.#lastAt = 0;
    this.#socket.write(`${this.#head}${Buffer.byteLength(body)}\r\n\r\n${body}`);
    return promise;
  }

  close(): void {
    this.#settle = undefined;
    this.#socket.destroy();
  }

  #take(chunk: string): void {
    const now = performance.now();
    this.#reads++;
    if (this.#lastAt !== 0 && this.#firstAt !== 0) this.gaps.push(now - this.#lastAt);
    this.#lastAt = now;
    let body = chunk;
    if (this.#left === undefined) {
      this.#text += chunk;
      const end = this.#text.indexOf("\r\n\r\n");
      if (end < 0) return;
      const head = this.#text.slice(0, end).toLowerCase();
      if (!head.startsWith("http/1.1 200")) {
        this.#fail(new Error(`not a 200: ${this.#text.slice(0, 600)}`));
        return;
      }
      const length = /\r\ncontent-length: *(\d+)/.exec(head)?.[1];
      body = this.#text.slice(end + 4);
      this.#left = length === undefined ? -1 : Number(length);
      this.#text = "";
    }
    if (this.#firstAt === 0 && body.includes(this.#stream ? "data:" : "{")) this.#firstAt = now;
    // Enough to see the end of a chunked body and of the stream in it.
    this.#text = body.length >= 64 ? body.slice(-64) : (this.#text + body).slice(-64);
    if (this.#left >= 0) this.#left -= body.length;
    if (this.#left === 0 || (this.#left < 0 && this.#text.endsWith("\r\n0\r\n\r\n"))) this.#done(now);
  }

  #done(now: number): void {
    if (this.#stream && !this.#text.includes("data: [DONE]")) {
      this.#fail(new Error(`a stream ended without [DONE]: ${this.#text}`));
      return;
    }
    const settle = this.#settle;
    this.#settle = undefined;
    settle?.resolve({ ms: now - this.#startedAt, firstMs: this.#firstAt - this.#startedAt, reads: this.#reads });
  }

  #fail(error: Error): void {
    const settle = this.#settle;
    this.#settle = undefined;
    settle?.reject(error);
    this.#socket.destroy();
  }
}

async function cell(command: Extract<Command, { type: "cell" }>): Promise<CellResult> {
  const { endpoint, stream, concurrency, ms } = command;
  const callers = Array.from({ length: concurrency }, () => new Caller(endpoint, stream));
  await Promise.all(callers.map((caller) => caller.connected()));
  const startedAt = performance.now();
  let requests = 0;
  let reads = 0;
  const one = async (caller: Caller, index: number): Promise<void> => {
    // Callers of a service do not begin in step.
    if (concurrency > 1) await sleep((index * 200) / concurrency);
    while (performance.now() - startedAt < ms) {
      const timing = await caller.request();
      reads += timing.reads;
      requests++;
    }
  };
  try {
    await Promise.all(callers.map(one));
  } finally {
    for (const caller of callers) caller.close();
  }
  const gaps = callers.flatMap((caller) => caller.gaps).sort((a, b) => a - b);
  const quantile = (share: number): number => gaps[Math.floor(gaps.length * share)] ?? 0;
  return {
    requests,
    wallMs: performance.now() - startedAt,
    readsPerRequest: reads / requests,
    gapP50: quantile(0.5),
    gapP99: quantile(0.99),
  };
}

async function turns(command: Extract<Command, { type: "turns" }>): Promise<TurnsResult> {
  const callers = command.endpoints.map((endpoint) => new Caller(endpoint, command.stream));
  const whole = callers.map((): number[] => []);
  const first = callers.map((): number[] => []);
  await Promise.all(callers.map((caller) => caller.connected()));
  try {
    for (let round = 0; round < command.rounds; round++) {
      for (const [index, caller] of callers.entries()) {
        const timing = await caller.request();
        whole[index]?.push(timing.ms);
        first[index]?.push(timing.firstMs);
      }
    }
  } finally {
    for (const caller of callers) caller.close();
  }
  return { whole, first };
}

if (process.send !== undefined) {
  process.on("message", (command: Command) => {
    const work: Promise<CellResult | TurnsResult> = command.type === "cell" ? cell(command) : turns(command);
    work.then(
      (result) => process.send?.({ result }),
      (error: unknown) => process.send?.({ error: error instanceof Error ? error.message : String(error) }),
    );
  });
  process.once("disconnect", () => process.exit());
  process.send({ ready: true });
}
