import type { Clock } from "../../clock.ts";
import type { PoolConfig } from "../../config/schema.ts";
import type { GenerationEvent } from "../../backends/backend.ts";
import { SluiceError } from "../../errors.ts";

type DeadlineKind = "first_token" | "between_tokens" | "total";

const messages: Readonly<Record<DeadlineKind, string>> = {
  first_token: "A backend gave no token in time.",
  between_tokens: "A backend stopped in the middle of its answer.",
  total: "The answer took longer than is allowed.",
};

/** Connecting has its own deadline, inside the HTTP client. */
export interface DeadlineOptions {
  readonly clock: Clock;
  readonly deadlines: PoolConfig["deadlines"];
  /** When the request as a whole began; `total` spans all its attempts. */
  readonly requestStartedAt: number;
  readonly expire: (error: SluiceError) => void;
}

/**
 * The deadlines of one attempt. One timer at a time: an event only moves the moment at which it looks again, so a stream
 * of tokens costs no timer a token.
 */
export class Deadlines {
  readonly #options: DeadlineOptions;
  readonly #totalAt: number;
  #kind: DeadlineKind = "first_token";
  #at: number;
  #wake = new AbortController();
  #stopped = false;

  constructor(options: DeadlineOptions) {
    this.#options = options;
    this.#totalAt = options.requestStartedAt + options.deadlines.total;
    this.#at = options.clock.now() + options.deadlines.firstToken;
    void this.#watch();
  }

  /** Milliseconds left for the whole answer. */
  get totalLeft(): number {
    return this.#totalAt - this.#options.clock.now();
  }

  event(event: GenerationEvent): void {
    const { clock, deadlines } = this.#options;
    if ((event.type === "tokens" || event.type === "text") && this.#kind === "first_token") {
      this.#kind = "between_tokens";
      this.#at = clock.now() + deadlines.betweenTokens;
      // The new moment may lie before the one the timer waits for.
      this.#wake.abort();
      return;
    }
    this.#at = clock.now() + (this.#kind === "first_token" ? deadlines.firstToken : deadlines.betweenTokens);
  }

  stop(): void {
    this.#stopped = true;
    this.#wake.abort();
  }

  async #watch(): Promise<void> {
    const { clock, expire } = this.#options;
    while (!this.#stopped) {
      const at = Math.min(this.#at, this.#totalAt);
      const wait = at - clock.now();
      if (wait <= 0) {
        this.#stopped = true;
        expire(timedOut(this.#totalAt <= this.#at ? "total" : this.#kind));
        return;
      }
      this.#wake = new AbortController();
      await clock.sleep(wait, this.#wake.signal).catch(() => {});
    }
  }
}

function timedOut(kind: DeadlineKind): SluiceError {
  return new SluiceError({
    status: 504,
    type: "server_error",
    code: "backend_timeout",
    message: messages[kind],
    // When all the time is gone no other backend can help.
    retryable: kind !== "total",
    metricLabel: `timeout_${kind}`,
  });
}
