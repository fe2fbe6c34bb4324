import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";

export interface CuttingProxy {
  readonly url: string;
  close(): Promise<void>;
}

/** Shared by the proxies of a test: how many tokens may pass before a connection is cut, and how often that happened. */
export class Scissors {
  /** Tokens that pass before each cut, in order; empty = nothing is cut. */
  plan: number[] = [];
  cuts = 0;
  /** 0 <= random < 1: where in the line of its token a connection is cut. */
  readonly #random: () => number;
  #passed = 0;

  constructor(random: () => number) {
    this.#random = random;
  }

  arm(plan: readonly number[]): void {
    this.plan = [...plan];
    this.cuts = 0;
    this.#passed = 0;
  }

  /** How many of these bytes may pass; undefined = all, and the connection lives on. */
  cutIn(bytes: Buffer): number | undefined {
    for (const { index: at } of bytes.toString("latin1").matchAll(token)) {
      const [next] = this.plan;
      if (next === undefined) return undefined;
      if (this.#passed === next) {
        this.plan.shift();
        this.#passed = 0;
        this.cuts++;
        // Anywhere in the line: before it, within a number, or right behind its end.
        const end = bytes.indexOf("\n", at);
        return at + Math.floor(this.#random() * ((end < 0 ? bytes.length : end + 1) - at + 1));
      }
      this.#passed++;
    }
    return undefined;
  }
}

/** An event with tokens, or one token in the row of a stream's line: `"rows":[[3,501],[4,77,78]]`. */
const token = /"type":"tokens"|(?<="rows":\[[\d,[\]]*\[[\d,]*\d),\d+/g;

/** Carries bytes to a daemon and back, and resets the connection where the scissors say. */
export async function startCuttingProxy(target: string, scissors: Scissors): Promise<CuttingProxy> {
  const { hostname, port } = new URL(target);
  const sockets = new Set<Socket>();
  const server = createServer({ noDelay: true }, (caller) => {
    const daemon = connect({ host: hostname, port: Number(port), noDelay: true });
    const end = () => {
      caller.destroy();
      daemon.destroy();
    };
    for (const socket of [caller, daemon]) {
      sockets.add(socket);
      socket.on("error", end);
      socket.on("close", () => {
        sockets.delete(socket);
        end();
      });
    }
    caller.on("data", (bytes) => daemon.write(bytes));
    daemon.on("data", (bytes) => {
      const cut = scissors.cutIn(bytes);
      if (cut === undefined) {
        caller.write(bytes);
        return;
      }
      daemon.destroy();
      // A reset would overtake what was sent before it.
      caller.end(bytes.subarray(0, cut), () => caller.destroy());
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  return {
    url: `http://127.0.0.1:${typeof address === "object" && address !== null ? address.port : 0}`,
    async close() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}
