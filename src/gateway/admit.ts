import { invalidRequest } from "../errors.ts";
import type { PreparedRequest } from "./request.ts";
import type { TenantEntry } from "./tenants/directory.ts";

/** What a request holds of its tenant's share until it is settled. */
export interface Lease {
  /** Prompt + most that may be generated, over all choices. */
  readonly reservedTokens: number;
  /** Gives everything back; once. */
  release(): void;
}

/**
 * Reserves a request's exact worst case: its prompts once, its longest possible answers `n` times, and a place for each
 * answer. The place that the key check took becomes part of the lease. Throws SluiceError: 429 when the tenant's places
 * are taken, 400 when it has fewer than the request needs even when idle.
 */
export function admit(entry: TenantEntry, requests: readonly PreparedRequest[], leave: () => void): Lease {
  const answers = requests.reduce((total, request) => total + request.n, 0);
  if (answers > entry.limits.concurrency) {
    throw invalidRequest(
      "invalid_value",
      `Invalid value for 'n': at most ${entry.limits.concurrency} answers of this key may run at once.`,
      "n",
    );
  }
  const leaveOthers = entry.gate.enter(entry.limits, answers - 1);
  const reservedTokens = requests.reduce(
    (total, request) => total + request.promptIds.length + request.n * request.maxNewTokens,
    0,
  );
  entry.gate.reserve(reservedTokens);
  let released = false;
  return {
    reservedTokens,
    release() {
      if (released) return;
      released = true;
      entry.gate.reserve(-reservedTokens);
      leaveOthers();
      leave();
    },
  };
}
