import type { BackendInfo } from "../../backends/backend.ts";
import type { FeedState } from "../routing/kv-index.ts";
import type { Load } from "../routing/ledger.ts";
import type { Pools } from "../routing/pools.ts";
import type { Rates } from "../routing/rates.ts";

export interface BackendSnapshot {
  readonly id: string;
  readonly ready: boolean;
  readonly reason: string | undefined;
  readonly breaker: "closed" | "open" | "half-open";
  readonly inFlight: number;
  readonly load: Load;
  readonly rates: Rates;
  readonly feed: FeedState;
  readonly info: BackendInfo | undefined;
}

export interface DispatcherSnapshot {
  readonly pools: ReadonlyArray<{ readonly name: string; readonly backends: readonly BackendSnapshot[] }>;
  readonly index: { readonly eventBlocks: number; readonly routedBlocks: number };
}

/** What the dispatcher knows at this moment, for operators. */
export function snapshotOf(pools: Pools, now: number): DispatcherSnapshot {
  return {
    pools: pools.all.map((pool) => ({
      name: pool.name,
      backends: pool.members.map(({ backend, breaker, health, info, inFlight }) => ({
        id: backend.id,
        ready: health.ready,
        reason: health.ready ? undefined : health.reason,
        breaker: breaker.state(now),
        inFlight,
        load: pools.ledger.loadOf(backend.id),
        rates: pools.rates.of(
          backend.id,
          pool.members.map((member) => member.backend.id),
        ),
        feed: pools.index.feedState(backend.id),
        info,
      })),
    })),
    index: pools.index.size(),
  };
}
