import type { PoolConfig } from "../../config/schema.ts";

/** What an attempt tells the breaker at its end; only the first call counts. */
export interface Permit {
  succeeded(): void;
  failed(): void;
  /** Says nothing of the backend: the caller left, or the backend was full. */
  neutral(): void;
}

/**
 * One backend's circuit breaker. Closed: failures are counted in a sliding window. Open: nobody is sent there until
 * `probeAfter`. Then half-open: one attempt at a time, whose end decides. Times in milliseconds of the caller's clock.
 */
export class Breaker {
  readonly #config: PoolConfig["breaker"];
  #failures: number[] = [];
  #openedAt: number | undefined;
  #probing = false;

  constructor(config: PoolConfig["breaker"]) {
    this.#config = config;
  }

  state(now: number): "closed" | "open" | "half-open" {
    if (this.#openedAt === undefined) return "closed";
    return now - this.#openedAt >= this.#config.probeAfter ? "half-open" : "open";
  }

  admits(now: number): boolean {
    const state = this.state(now);
    return state === "closed" || (state === "half-open" && !this.#probing);
  }

  /** Call only when `admits`; `clock` is read again when the attempt ends. */
  begin(clock: { now(): number }): Permit {
    const probe = this.state(clock.now()) === "half-open";
    if (probe) this.#probing = true;
    let open = true;
    const end = (action: () => void) => () => {
      if (!open) return;
      open = false;
      if (probe) this.#probing = false;
      action();
    };
    return {
      succeeded: end(() => {
        this.#failures = [];
        this.#openedAt = undefined;
      }),
      failed: end(() => this.#fail(clock.now(), probe)),
      neutral: end(() => {}),
    };
  }

  /** Forgets what failed; an attempt that began before still ends by its own permit. */
  reset(): void {
    this.#failures = [];
    this.#openedAt = undefined;
  }

  #fail(now: number, probe: boolean): void {
    this.#failures = [...this.#failures.filter((at) => now - at < this.#config.window), now];
    if (probe || this.#failures.length >= this.#config.failures) {
      this.#openedAt = now;
      // Bounded by construction: an open breaker admits no attempt that could add to it but the probe.
      this.#failures = this.#failures.slice(-this.#config.failures);
    }
  }
}
