import type { ServerResponse } from "node:http";
import type { Engine, KvDelta } from "../../engine/engine.ts";
import { kvBlocksPerLine } from "./protocol.ts";

interface Subscriber {
  readonly response: ServerResponse;
  seq: number;
  /** Heartbeats since the socket last took anything. */
  stuck: number;
  /** Since the last heartbeat. */
  sent: boolean;
}

export interface KvFeedOptions {
  readonly engine: Pick<Engine, "kvEvents" | "kvSnapshot">;
  readonly instance: string;
  /** Unsent bytes above which a subscriber is left alone until it has read; the engine's ring keeps its place. */
  readonly maxBufferedBytes: number;
  readonly maxSubscribers: number;
}

const stuckHeartbeats = 15;

/**
 * The subscribers of `/v1/kv/events`. Nothing is queued for a slow one but what its socket holds: its place is a sequence
 * number, and when the engine's ring has passed that, it gets a snapshot.
 */
export class KvFeed {
  readonly #options: KvFeedOptions;
  readonly #subscribers = new Set<Subscriber>();

  constructor(options: KvFeedOptions) {
    this.#options = options;
  }

  get size(): number {
    return this.#subscribers.size;
  }

  get full(): boolean {
    return this.#subscribers.size >= this.#options.maxSubscribers;
  }

  /** `after` undefined = start with a snapshot. The response's head has been written. */
  subscribe(response: ServerResponse, after: number | undefined): void {
    const subscriber: Subscriber = { response, seq: after ?? 0, stuck: 0, sent: true };
    this.#subscribers.add(subscriber);
    response.once("close", () => this.#subscribers.delete(subscriber));
    response.on("drain", () => this.#pump(subscriber));
    if (after === undefined) this.#sendSnapshot(subscriber);
    else this.#pump(subscriber);
  }

  changed(): void {
    for (const subscriber of this.#subscribers) this.#pump(subscriber);
  }

  heartbeat(): void {
    for (const subscriber of this.#subscribers) {
      if (this.#blocked(subscriber)) {
        subscriber.stuck++;
        if (subscriber.stuck > stuckHeartbeats) subscriber.response.destroy();
        continue;
      }
      subscriber.stuck = 0;
      if (!subscriber.sent) send(subscriber, { type: "heartbeat", seq: subscriber.seq });
      subscriber.sent = false;
    }
  }

  close(): void {
    for (const subscriber of this.#subscribers) subscriber.response.end();
  }

  #blocked(subscriber: Subscriber): boolean {
    return subscriber.response.writableLength > this.#options.maxBufferedBytes;
  }

  #pump(subscriber: Subscriber): void {
    if (this.#blocked(subscriber)) return;
    const deltas = this.#options.engine.kvEvents(subscriber.seq);
    if (deltas === undefined) {
      this.#sendSnapshot(subscriber);
      return;
    }
    for (const delta of deltas) {
      // A ring of deltas is bounded, one that a reader left behind is not sent at once: the rest follows on `drain`.
      if (this.#blocked(subscriber)) return;
      this.#sendParts(subscriber, delta, false);
    }
  }

  #sendSnapshot(subscriber: Subscriber): void {
    this.#sendParts(subscriber, this.#options.engine.kvSnapshot(), true);
  }

  #sendParts(subscriber: Subscriber, delta: KvDelta, snapshot: boolean): void {
    for (let start = 0; start === 0 || start < delta.stored.length; start += kvBlocksPerLine) {
      const blocks = delta.stored.slice(start, start + kvBlocksPerLine);
      const more = start + kvBlocksPerLine < delta.stored.length;
      if (snapshot && start === 0) {
        send(subscriber, { type: "snapshot", seq: delta.seq, instance: this.#options.instance, blocks, more });
      } else {
        // Removals go first: a block may leave and come back within one delta.
        send(subscriber, {
          type: "delta",
          seq: delta.seq,
          stored: blocks,
          removed: start === 0 ? delta.removed : [],
          more,
        });
      }
    }
    subscriber.seq = delta.seq;
  }
}

function send(subscriber: Subscriber, line: object): void {
  subscriber.sent = true;
  subscriber.response.write(`${JSON.stringify(line)}\n`);
}
