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
  /** When the timer fires; it looks at `#at` then. */
  #timerAt = Number.POSITIVE_INFINITY;
  #cancelTimer: () => void = () => {};

  constructor(options: DeadlineOptions) {
    this.#options = options;
    this.#totalAt = options.requestStartedAt + options.deadlines.total;
    const now = options.clock.now();
    this.#at = now + options.deadlines.firstToken;
    this.#wait(now);
  }

  /** Milliseconds left for the whole answer. */
  get totalLeft(): number {
    return this.#totalAt - this.#options.clock.now();
  }

  event(event: GenerationEvent): void {
    const { clock, deadlines } = this.#options;
    const now = clock.now();
    if (event.type === "tokens" || event.type === "text") this.#kind = "between_tokens";
    this.#at = now + (this.#kind === "first_token" ? deadlines.firstToken : deadlines.betweenTokens);
    // Later ones are found when the timer fires.
    if (this.#at < this.#timerAt) this.#wait(now);
  }

  stop(): void {
    this.#cancelTimer();
    this.#timerAt = Number.NEGATIVE_INFINITY;
  }

  #wait(now: number): void {
    this.#cancelTimer();
    this.#timerAt = Math.min(this.#at, this.#totalAt);
    this.#cancelTimer = this.#options.clock.after(this.#timerAt - now, () => this.#look());
  }

  #look(): void {
    const { clock, expire } = this.#options;
    const now = clock.now();
    if (Math.min(this.#at, this.#totalAt) > now) {
      this.#wait(now);
      return;
    }
    this.stop();
    expire(timedOut(this.#totalAt <= this.#at ? "total" : this.#kind));
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
