import type { Backend, BackendHealth, BackendInfo } from "../../backends/backend.ts";
import { backendId, type OpenBackend } from "../../backends/open.ts";
import type { Clock } from "../../clock.ts";
import type { Config, PoolConfig } from "../../config/schema.ts";
import { SluiceError } from "../../errors.ts";
import { Breaker } from "../dispatch/breaker.ts";
import { RetryBudget } from "../dispatch/retry-budget.ts";
import { followKvEvents } from "./feed.ts";
import { watchHealth } from "./health.ts";
import { KvIndex } from "./kv-index.ts";
import { LoadLedger } from "./ledger.ts";
import { BackendRates } from "./rates.ts";
import { alone, breakerAt, budgetAt, Cooling, clearBackend, clearPool, type RoutingShare, type Seen } from "./share.ts";
import { maxBackends, type Slots } from "./slots.ts";

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
  /** Absent = this gateway has one thread. */
  readonly share?: RoutingShare | undefined;
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
  readonly index: KvIndex;
  readonly ledger: LoadLedger;
  readonly rates: BackendRates;
  readonly #options: PoolsOptions;
  readonly #share: RoutingShare;
  readonly #cooling: Cooling;
  #entries = new Map<string, Entry>();
  #pools = new Map<string, Pool>();
  #models: Config["models"] = {};
  readonly #waiting = new Set<() => void>();

  constructor(options: PoolsOptions) {
    this.#options = options;
    const share = options.share ?? alone();
    this.#share = share;
    const { memory, thread, backends: slots } = share;
    this.index = new KvIndex({ slots, memory: memory.index, thread });
    this.ledger = new LoadLedger({ slots, memory: memory.load, thread });
    this.rates = new BackendRates({ slots, memory: memory.rates, thread });
    this.#cooling = new Cooling(memory);
  }

  /**
   * Takes a configuration over. Backends that it names unchanged keep their connections and all that is known of them.
   * When a new one cannot be opened nothing changes and the error is thrown.
   */
  reconfigure(config: Config): void {
    const wanted = new Map<
      string,
      { readonly terms: string; readonly opened: Backend | undefined; pool: PoolConfig }
    >();
    try {
      for (const [poolName, pool] of Object.entries(config.pools)) {
        for (const endpoint of pool.endpoints) {
          const id = backendId({ poolName, endpoint });
          if (wanted.has(id)) continue;
          const terms = termsOf(pool, endpoint);
          const known = this.#entries.get(id)?.terms === terms;
          const opened = known ? undefined : this.#options.openBackend({ poolName, pool, endpoint });
          wanted.set(id, { terms, opened, pool });
        }
      }
      if (wanted.size > maxBackends) throw tooManyBackends(wanted.size);
    } catch (error) {
      for (const { opened } of wanted.values()) void opened?.close();
      throw error;
    }
    const before = this.#entries;
    const { backends, pools, memory } = this.#share;
    for (const id of before.keys()) if (this.#leads && !wanted.has(id)) backends.drop(id);
    const entries = new Map<string, Entry>();
    for (const [id, { terms, opened, pool }] of wanted) {
      const known = before.get(id);
      if (opened !== undefined) entries.set(id, this.#enter(id, opened, pool, terms));
      else if (known !== undefined) entries.set(id, known);
    }
    this.#entries = entries;
    for (const name of this.#pools.keys()) if (this.#leads && !Object.hasOwn(config.pools, name)) pools.drop(name);
    this.#pools = new Map(
      Object.entries(config.pools).map(([name, pool]): [string, Pool] => {
        const members = pool.endpoints.flatMap((endpoint) => {
          return entries.get(backendId({ poolName: name, endpoint }))?.member ?? [];
        });
        const slot = this.#slotOf(pools, name, (taken) => clearPool(memory, taken));
        const budget = new RetryBudget(pool.retry.budget, budgetAt(memory, slot));
        return [name, { name, config: pool, members: [...new Set(members)], budget }];
      }),
    );
    this.#models = config.models;
    for (const [id, entry] of before) if (entries.get(id) !== entry) this.#retire(entry);
    for (const [id, entry] of entries) if (before.get(id) !== entry && this.#leads) this.#watch(entry);
    this.#changed();
  }

  /** In a thread that does not probe: what the one that does has seen. */
  told(backend: string, seen: Seen): void {
    const entry = this.#entries.get(backend);
    if (entry !== undefined) this.#saw(entry.member, seen);
  }

  /** What is known of every backend, for a thread that begins. */
  get seen(): ReadonlyMap<string, Seen> {
    return new Map(
      [...this.#entries].map(([id, { member }]) => {
        return [id, { health: member.health, info: member.info, at: member.seenReadyAt }];
      }),
    );
  }

  /** The model's pools in order of preference; empty for an unknown model. */
  of(model: string): readonly Pool[] {
    if (!Object.hasOwn(this.#models, model)) return [];
    return (this.#models[model]?.pools ?? []).flatMap((name) => this.#pools.get(name) ?? []);
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
    if (entry?.member !== member) return;
    if (this.#leads) entry.nudge.abort();
    else this.#share.onSuspect?.(member.backend.id);
  }

  /** The same for a backend that another thread found failing. */
  suspected(backend: string): void {
    this.#entries.get(backend)?.nudge.abort();
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

  /** This thread gives out slots, probes and follows feeds. */
  get #leads(): boolean {
    return this.#share.onSuspect === undefined;
  }

  #enter(id: string, backend: Backend, pool: PoolConfig, terms: string): Entry {
    const { memory, thread, backends } = this.#share;
    if (this.#leads) backends.drop(id);
    const slot = this.#slotOf(backends, id, (taken) => clearBackend(memory, taken));
    const cooling = this.#cooling;
    const member: Member = {
      backend,
      breaker: new Breaker(pool.breaker, { words: breakerAt(memory, slot), thread }),
      health: { ready: false, reason: "not asked yet" },
      info: undefined,
      seenReadyAt: Number.NEGATIVE_INFINITY,
      get coolUntil() {
        return cooling.of(slot);
      },
      set coolUntil(until) {
        cooling.set(slot, until);
      },
      inFlight: 0,
    };
    return { member, terms, stop: new AbortController(), nudge: new AbortController() };
  }

  #slotOf(slots: Slots, name: string, clear: (slot: number) => void): number {
    const known = slots.of(name);
    if (known !== undefined) return known;
    const taken = this.#leads ? slots.take(name) : undefined;
    if (taken === undefined) throw new RangeError(`no slot was given to ${name}`);
    clear(taken);
    return taken;
  }

  #saw(member: Member, { health, info, at }: Seen): void {
    if (health.ready && health.late !== true) member.seenReadyAt = at;
    member.health = health;
    member.info = info ?? member.info;
    this.#changed();
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
        if (seen.load === undefined) this.ledger.forgetForeign(backend.id);
        else this.ledger.correct(backend.id, seen.load);
        const told: Seen = { health: seen.health, info: seen.info, at: clock.now() };
        this.#saw(member, told);
        this.#share.onSeen?.(backend.id, told);
      },
    });
    if (backend.capabilities.kvEvents) {
      const changed = () => this.#changed();
      void followKvEvents({ backend, index: this.index, clock, random, signal, changed });
    }
  }

  #changed(): void {
    for (const check of this.#waiting) check();
    this.#share.onChange?.();
  }

  #retire({ member, stop }: Entry): void {
    stop.abort();
    // Its slot has been given up, and with it all that the tables know of it but its blocks.
    this.index.forget(member.backend.id);
    if (member.inFlight === 0) void member.backend.close();
  }
}

/** Equal text = the same backend under the same terms. */
const termsOf = (pool: PoolConfig, endpoint: string): string =>
  JSON.stringify([
    endpoint,
    pool.backend,
    pool.key,
    pool.deadlines.connect,
    pool.breaker,
    pool.upstreamModel,
    pool.capabilities,
    pool.health,
  ]);

const tooManyBackends = (count: number): SluiceError =>
  new SluiceError({
    status: 500,
    type: "server_error",
    code: "invalid_config",
    message: `pools: ${count} backends are more than the ${maxBackends} that one gateway can know`,
    param: "pools",
  });
