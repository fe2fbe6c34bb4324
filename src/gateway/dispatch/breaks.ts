import type { PoolConfig } from "../../config/schema.ts";
import type { Member } from "../routing/pools.ts";
import type { Breaker } from "./breaker.ts";

/** What breaks within this time of a break is the same misfortune: a process that dies takes all its streams along. */
export const incidentMs = 1_000;

interface Account {
  /** When each incident of the window began. */
  incidents: number[];
  broken: number;
  finished: number;
}

/**
 * Streams that broke after they had begun, backend by backend. A first token tells a breaker that all is well, so a backend
 * that begins every answer and ends none would never be taken out. It is when it had as many incidents in the breaker's
 * window as the breaker bears failures, and broke more streams meanwhile than it finished.
 */
export class StreamBreaks {
  readonly #accounts = new WeakMap<Member, Account>();

  /** `incident`: the first break of one. `open`: the breaker should open. */
  broke(
    member: Member,
    { failures, window }: PoolConfig["breaker"],
    now: number,
  ): { incident: boolean; open: boolean } {
    const account = this.#accounts.get(member) ?? { incidents: [], broken: 0, finished: 0 };
    this.#accounts.set(member, account);
    account.incidents = account.incidents.filter((at) => now - at < window);
    if (account.incidents.length === 0) {
      account.broken = 0;
      account.finished = 0;
    }
    account.broken++;
    const last = account.incidents.at(-1);
    const incident = last === undefined || now - last >= incidentMs;
    // Older ones could not change the verdict.
    if (incident) account.incidents = [...account.incidents, now].slice(-failures);
    return { incident, open: account.incidents.length >= failures && account.broken > account.finished };
  }

  /** Opens a closed breaker, in its own words: as many failures as it bears. A half-open one is the probe's affair. */
  trip(breaker: Breaker, { failures }: PoolConfig["breaker"], clock: { now(): number }): void {
    for (let left = failures; left > 0 && breaker.state(clock.now()) === "closed"; left--)
      breaker.begin(clock).failed();
  }

  finished(member: Member): void {
    const account = this.#accounts.get(member);
    if (account !== undefined) account.finished++;
  }
}
