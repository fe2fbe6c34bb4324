import type { Backend, BackendHealth, BackendInfo } from "../../backends/backend.ts";
import { backendId, type OpenBackend } from "../../backends/open.ts";
import type { Clock } from "../../clock.ts";
import type { Config, ModelConfig, PoolConfig } from "../../config/schema.ts";
import { Breaker } from "../dispatch/breaker.ts";
import { RetryBudget } from "../dispatch/retry-budget.ts";
import { followKvEvents } from "./feed.ts";
import { watchHealth } from "./health.ts";
import { KvIndex } from "./kv-index.ts";
import { LoadLedger } from "./ledger.ts";
import { BackendRates } from "./rates.ts";

/** One backend of a pool and all that is known of it. Only `Pools` and `dispatch` write to it. */
export interface Member {
  readonly backend: Backend;
  readonly breaker: Breaker;
  health: BackendHealth;
  info: BackendInfo | undefined;
  /** When a probe last found it ready. */
  seenReadyAt: number;
  /** It was full or silent: others first until then. */
  coolUntil: number;
  /** Attempts under way; a backend that left the configuration closes after its last. */
  inFlight: number;
}

export interface Pool {
  readonly name: string;
  readonly config: PoolConfig;
  readonly members: readonly Member[];
  readonly budget: RetryBudget;
}

export interface PoolsOptions {
  readonly openBackend: OpenBackend;
  readonly clock: Clock;
  /** 0 <= random < 1. */
  readonly random: () => number;
}

interface Entry {
  readonly member: Member;
  /** Equal text = the same backend under the same terms: it survives a reload. */
  readonly terms: string;
  readonly stop: AbortController;
  /** Aborting asks for a probe at once; a new one takes its place. */
  nudge: AbortController;
}

/** The pools of the running configuration with their backends' state: health, KV index, load, learned rates. */
export class Pools {
  readonly index = new KvIndex();
  readonly ledger = new LoadLedger();
  readonly rates = new BackendRates();
  readonly #options: PoolsOptions;
  #entries = new Map<string, Entry>();
  #pools = new Map<string, Pool>();
  #models: Config["models"] = {};
  readonly #waiting = new Set<() => void>();

  constructor(options: PoolsOptions) {
    this.#options = options;
  }

  /**
   * Takes a configuration over. Backends that it names unchanged keep their connections and all that is known of them.
   * When a new one cannot be opened nothing changes and the error is thrown.
   */
  reconfigure(config: Config): void {
    const entries = new Map<string, Entry>();
    const opened: Entry[] = [];
    const pools = new Map<string, Pool>();
    try {
      for (const [name, poolConfig] of Object.entries(config.pools)) {
        const members = poolConfig.endpoints.map((endpoint) => {
          const id = backendId({ poolName: name, endpoint });
          const terms = JSON.stringify([
            endpoint,
            poolConfig.backend,
            poolConfig.key,
            poolConfig.deadlines.connect,
            poolConfig.breaker,
            poolConfig.upstreamModel,
            poolConfig.capabilities,
            poolConfig.health,
          ]);
          const known = entries.get(id) ?? this.#entries.get(id);
          const entry = known?.terms === terms ? known : this.#open(name, poolConfig, endpoint, terms);
          if (entry !== known) opened.push(entry);
          entries.set(id, entry);
          return entry.member;
        });
        const budget = this.#pools.get(name)?.budget ?? new RetryBudget(poolConfig.retry.budget);
        pools.set(name, { name, config: poolConfig, members: [...new Set(members)], budget });
      }
    } catch (error) {
      for (const entry of opened) void entry.member.backend.close();
      throw error;
    }
    const gone = [...this.#entries.values()].filter((entry) => entries.get(entry.member.backend.id) !== entry);
    this.#entries = entries;
    this.#pools = pools;
    this.#models = config.models;
    for (const entry of gone) this.#retire(entry);
    for (const entry of opened) this.#watch(entry);
  }

  /** The model's pools in order of preference; empty for an unknown model. */
  of(model: string): readonly Pool[] {
    if (!Object.hasOwn(this.#models, model)) return [];
    return (this.#models[model]?.pools ?? []).flatMap((name) => this.#pools.get(name) ?? []);
  }

  resumeOf(model: string): ModelConfig["resume"] {
    return (Object.hasOwn(this.#models, model) ? this.#models[model]?.resume : undefined) ?? { wait: 0, breaks: 0 };
  }

  get models(): readonly string[] {
    return Object.keys(this.#models);
  }

  get all(): readonly Pool[] {
    return [...this.#pools.values()];
  }

  /** Resolves when `condition` holds; looked at after every probe and whenever a feed comes or goes. Rejects with the signal's reason. */
  until(condition: () => boolean, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const check = () => {
        if (!signal.aborted && !condition()) return;
        this.#waiting.delete(check);
        signal.removeEventListener("abort", check);
        if (signal.aborted) reject(signal.reason);
        else resolve();
      };
      this.#waiting.add(check);
      signal.addEventListener("abort", check, { once: true });
      check();
    });
  }

  /** Something failed there: its health is looked at now instead of at the next turn. */
  suspect(member: Member): void {
    const entry = this.#entries.get(member.backend.id);
    if (entry?.member === member) entry.nudge.abort();
  }

  /** An attempt on a member has ended; closes the member when it was the last of one that is gone. */
  released(member: Member): void {
    member.inFlight--;
    if (member.inFlight === 0 && this.#entries.get(member.backend.id)?.member !== member) void member.backend.close();
  }

  async close(): Promise<void> {
    const entries = [...this.#entries.values()];
    this.#entries = new Map();
    this.#pools = new Map();
    this.#models = {};
    for (const entry of entries) entry.stop.abort();
    await Promise.all(entries.map((entry) => entry.member.backend.close()));
  }

  #open(poolName: string, pool: PoolConfig, endpoint: string, terms: string): Entry {
    const member: Member = {
      backend: this.#options.openBackend({ poolName, pool, endpoint }),
      breaker: new Breaker(pool.breaker),
      health: { ready: false, reason: "not asked yet" },
      info: undefined,
      seenReadyAt: Number.NEGATIVE_INFINITY,
      coolUntil: Number.NEGATIVE_INFINITY,
      inFlight: 0,
    };
    return { member, terms, stop: new AbortController(), nudge: new AbortController() };
  }

  #watch(entry: Entry): void {
    const { member, stop } = entry;
    const { backend } = member;
    const { clock, random } = this.#options;
    const { signal } = stop;
    void watchHealth({
      backend,
      clock,
      random,
      signal,
      nudged: () => {
        entry.nudge = new AbortController();
        return entry.nudge.signal;
      },
      report: (seen) => {
        // A daemon is ready when it has produced a token: what failed before it restarted says nothing of it now.
        if (seen.health.ready && !member.health.ready && backend.capabilities.tokenIds) member.breaker.reset();
        if (seen.health.ready) member.seenReadyAt = clock.now();
        member.health = seen.health;
        member.info = seen.info ?? member.info;
        if (seen.load === undefined) this.ledger.forgetForeign(backend.id);
        else this.ledger.correct(backend.id, seen.load);
        this.#changed();
      },
    });
    if (backend.capabilities.kvEvents) {
      const changed = () => this.#changed();
      void followKvEvents({ backend, index: this.index, clock, random, signal, changed });
    }
  }

  #changed(): void {
    for (const check of this.#waiting) check();
  }

  #retire({ member, stop }: Entry): void {
    stop.abort();
    const { id } = member.backend;
    // Under the same id a changed backend may have taken its place; what is known of the old one would mislead.
    this.index.forget(id);
    this.rates.forget(id);
    this.ledger.forgetForeign(id);
    if (member.inFlight === 0) void member.backend.close();
  }
}
