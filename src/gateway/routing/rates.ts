export interface Rates {
  /** Prompt tokens a millisecond. */
  readonly prefillRate: number;
  /** Milliseconds that one generation adds to each token of another on the same backend. */
  readonly decodeMsPerRow: number;
}

/** What one finished answer says of its backend's speed; times as the backend measured them. */
export interface RateSample {
  /** Prompt tokens computed from the pick to the first token: those ahead in the queue and the answer's own. */
  readonly prefillTokens: number;
  readonly prefillMs: number;
  readonly decodeTokens: number;
  readonly decodeMs: number;
  /** Generations on the backend while this one ran, itself included. */
  readonly rows: number;
}

/** Before anything is measured: of the order of a small model on a few CPU cores. Only ratios between backends matter. */
const prior: Rates = { prefillRate: 1, decodeMsPerRow: 5 };

/** Weight of a new sample: about the last ten count. */
const weight = 0.2;

/** Its peers' mean counts as this many samples of its own: one slow answer must not undo affinity. */
const shrinkage = 4;

/** Shorter ones measure overhead, not throughput. */
const minPrefillTokens = 64;
const minDecodeTokens = 4;

class Mean {
  #value = 0;
  #samples = 0;

  add(sample: number): void {
    this.#value = this.#samples === 0 ? sample : this.#value + weight * (sample - this.#value);
    this.#samples++;
  }

  get value(): number | undefined {
    return this.#samples === 0 ? undefined : this.#value;
  }

  towards(mean: number): number {
    return (this.#samples * this.#value + shrinkage * mean) / (this.#samples + shrinkage);
  }
}

interface Learned {
  readonly prefillRate: Mean;
  readonly decodeMsPerRow: Mean;
}

/**
 * Speeds learned from each backend's own answers, as exponentially weighted means drawn towards the mean of its peers
 * while samples are few: a new backend is neither feared nor flooded.
 */
export class BackendRates {
  readonly #learned = new Map<string, Learned>();

  observe(backend: string, sample: RateSample): void {
    const learned = this.#learned.get(backend) ?? { prefillRate: new Mean(), decodeMsPerRow: new Mean() };
    this.#learned.set(backend, learned);
    if (sample.prefillTokens >= minPrefillTokens && sample.prefillMs > 0) {
      learned.prefillRate.add(sample.prefillTokens / sample.prefillMs);
    }
    if (sample.decodeTokens >= minDecodeTokens && sample.decodeMs > 0) {
      learned.decodeMsPerRow.add(sample.decodeMs / sample.decodeTokens / Math.max(1, sample.rows));
    }
  }

  /** `peers` = all backends of the pool, this one included. */
  of(backend: string, peers: readonly string[]): Rates {
    return {
      prefillRate: this.#rate(backend, peers, (learned) => learned.prefillRate, prior.prefillRate),
      decodeMsPerRow: this.#rate(backend, peers, (learned) => learned.decodeMsPerRow, prior.decodeMsPerRow),
    };
  }

  forget(backend: string): void {
    this.#learned.delete(backend);
  }

  #rate(backend: string, peers: readonly string[], pick: (learned: Learned) => Mean, fallback: number): number {
    const known = peers.flatMap((peer) => {
      const learned = this.#learned.get(peer);
      return learned === undefined ? [] : (pick(learned).value ?? []);
    });
    const mean = known.length === 0 ? fallback : known.reduce((sum, value) => sum + value, 0) / known.length;
    const own = this.#learned.get(backend);
    return own === undefined ? mean : pick(own).towards(mean);
  }
}
