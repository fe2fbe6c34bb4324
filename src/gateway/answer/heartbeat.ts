import type { Clock } from "../../clock.ts";

interface Beating {
  keepAlive(idleMs: number): void;
}

/** One timer for the keep-alive comments of all streams; it rests while there are none. */
export class Heartbeat {
  readonly #clock: Clock;
  readonly #idleMs: number;
  readonly #streams = new Set<Beating>();
  readonly #closed = new AbortController();
  #beating = false;

  constructor(clock: Clock, idleMs: number) {
    this.#clock = clock;
    this.#idleMs = idleMs;
  }

  add(stream: Beating): void {
    this.#streams.add(stream);
    if (!this.#beating && !this.#closed.signal.aborted) void this.#beat();
  }

  delete(stream: Beating): void {
    this.#streams.delete(stream);
  }

  close(): void {
    this.#closed.abort();
  }

  async #beat(): Promise<void> {
    this.#beating = true;
    try {
      while (this.#streams.size > 0) {
        // Four looks an interval: a comment comes at most a quarter late.
        await this.#clock.sleep(this.#idleMs / 4, this.#closed.signal);
        for (const stream of this.#streams) {
          try {
            stream.keepAlive(this.#idleMs);
          } catch {
            // A stream that cannot be written to is broken by its own next output; the others still need their beat.
          }
        }
      }
    } catch {
      // Closed while asleep.
    } finally {
      this.#beating = false;
    }
  }
}
