import { backendOpener } from "../../src/backends/open.ts";
import { openUndiciOrigin } from "../../src/backends/undici.ts";
import { systemClock } from "../../src/clock.ts";
import { createDispatcher, type Dispatcher } from "../../src/gateway/dispatch/dispatch.ts";
import { blockKeys } from "../../src/gateway/prompt/blocks.ts";
import type { DispatchEvent, PreparedRequest } from "../../src/gateway/request.ts";
import type { DaemonProcess } from "../support/daemons.ts";
import { poolsConfig, preparedRequest } from "../support/prepared.ts";

/** Three daemon processes in one pool, and the part of a gateway that talks to them. */
export interface Cluster {
  readonly daemons: readonly DaemonProcess[];
  readonly dispatcher: Dispatcher;
  daemonOf(backend: string): DaemonProcess;
  close(): Promise<void>;
}

/** Resolves when all daemons have produced a token and their KV feeds are alive. */
export async function startCluster(
  start: () => Promise<DaemonProcess>,
  vocabularyHash: string,
  poolChanges: Record<string, unknown> = {},
): Promise<Cluster> {
  const daemons = await Promise.all([start(), start(), start()]);
  const dispatcher = await dispatcherOver(daemons, vocabularyHash, poolChanges);
  return {
    daemons,
    dispatcher,
    daemonOf(backend) {
      const found = daemons.find(({ url }) => backend.endsWith(new URL(url).host));
      if (found === undefined) throw new Error(`no daemon behind ${backend}`);
      return found;
    },
    async close() {
      await dispatcher.close();
      for (const daemon of daemons) await daemon.kill();
    },
  };
}

export async function dispatcherOver(
  daemons: readonly DaemonProcess[],
  vocabularyHash: string,
  poolChanges: Record<string, unknown> = {},
): Promise<Dispatcher> {
  const dispatcher = createDispatcher({
    config: poolsConfig({ east: daemons.map(({ url }) => url) }, poolChanges),
    openBackend: backendOpener({ openHttp: openUndiciOrigin, env: () => undefined }),
    clock: systemClock,
    vocabularyHash: () => vocabularyHash,
  });
  const complete = AbortSignal.timeout(20_000);
  await dispatcher.until(
    ({ pools }) => pools.every(({ backends }) => backends.every(({ ready, feed }) => ready && feed.alive)),
    complete,
  );
  return dispatcher;
}

export function promptRequest(promptIds: Uint32Array, changes: Partial<PreparedRequest> = {}): PreparedRequest {
  return preparedRequest({ promptIds, blockKeys: blockKeys(promptIds, 16, "salt-t"), ...changes });
}

/** The backend of the last attempt. */
export function backendOf(events: readonly DispatchEvent[]): string {
  return events.flatMap((event) => (event.type === "attempt" ? event.backend : [])).at(-1) ?? "";
}

export function cachedOf(events: readonly DispatchEvent[]): number | undefined {
  return events.flatMap((event) => (event.type === "finish" ? event.usage.cachedTokens : []))[0];
}
