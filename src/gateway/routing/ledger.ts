import type { BackendLoad } from "../../backends/backend.ts";

export interface Load {
  /** Prompt tokens accepted or on their way and not yet computed. */
  readonly pendingPrefillTokens: number;
  /** Generations that hold or will hold a row. */
  readonly activeRows: number;
}

/** One generation's share of a backend's load. Every method may be called at any time; after `settle` all are no-ops. */
export interface LedgerEntry {
  /** Prompt tokens that remain to be computed, as the backend tells it. */
  remaining(tokens: number): void;
  settle(): void;
}

interface Account {
  pending: number;
  rows: number;
  /** Load that a scrape showed beyond our own at that moment: other gateways', callers that use the daemon directly. */
  foreign: Load;
}

const idle: Load = { pendingPrefillTokens: 0, activeRows: 0 };

/**
 * Load as this gateway knows it, counted at the moment of the pick: a count that waits for a scrape sends bursts to one
 * backend. Picking and counting happen in one turn of the event loop, so no two picks see the same state.
 */
export class LoadLedger {
  readonly #accounts = new Map<string, Account>();

  /** Counts a generation with `uncachedTokens` to prefill on `backend`. The caller must settle it, whatever happens. */
  pick(backend: string, uncachedTokens: number): LedgerEntry {
    const account = this.#account(backend);
    let pending = uncachedTokens;
    let open = true;
    account.pending += pending;
    account.rows++;
    const remaining = (tokens: number) => {
      if (!open) return;
      account.pending += tokens - pending;
      pending = tokens;
    };
    return {
      remaining,
      settle() {
        remaining(0);
        if (open) account.rows--;
        open = false;
      },
    };
  }

  loadOf(backend: string): Load {
    const account = this.#accounts.get(backend);
    if (account === undefined) return idle;
    return {
      pendingPrefillTokens: account.pending + account.foreign.pendingPrefillTokens,
      activeRows: account.rows + account.foreign.activeRows,
    };
  }

  /** What a scrape shows beyond our own count belongs to others and is added until the next scrape. Never lowers our own. */
  correct(backend: string, scraped: BackendLoad): void {
    const account = this.#account(backend);
    account.foreign = {
      pendingPrefillTokens: Math.max(0, scraped.pendingPrefillTokens - account.pending),
      activeRows: Math.max(0, scraped.runningRows + scraped.queuedRows - account.rows),
    };
  }

  /** Nothing is known of others' load any more. Our own entries stay until settled. */
  forgetForeign(backend: string): void {
    const account = this.#accounts.get(backend);
    if (account === undefined) return;
    account.foreign = idle;
    if (account.rows === 0) this.#accounts.delete(backend);
  }

  #account(backend: string): Account {
    const known = this.#accounts.get(backend);
    if (known !== undefined) return known;
    const account: Account = { pending: 0, rows: 0, foreign: idle };
    this.#accounts.set(backend, account);
    return account;
  }
}
