import { createDaemonBackend, type DaemonBackend } from "../../src/backends/daemon/client.ts";
import { type DaemonOptions, serveDaemon } from "../../src/backends/daemon/server.ts";
import { openUndiciOrigin } from "../../src/backends/undici.ts";
import { type HashEngine, type HashEngineOptions, hashEngineParts } from "./hash-engine.ts";

export const cleanUps: Array<() => Promise<unknown>> = [];

/** For `afterEach`. */
export async function closeServed(): Promise<void> {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
}

/** A daemon in this process around an engine without a model, and a backend that speaks to it. */
export async function daemon(options: Partial<DaemonOptions> = {}, own: HashEngineOptions = {}) {
  const engines: HashEngine[] = [];
  const served = await serveDaemon(
    { model: "hash", port: 0, precision: "exact", threads: 1, kvTokens: 4096, maxRows: 4, drainMs: 200, ...options },
    hashEngineParts(own, engines),
  );
  cleanUps.push(() => served.close());
  const [engine] = engines;
  if (engine === undefined) throw new Error("no engine was made");
  return { ...served, engine, backend: client(served.url, options.poolKey) };
}

export function client(
  url: string,
  poolKey?: string,
  changes: Partial<Parameters<typeof createDaemonBackend>[0]> = {},
): DaemonBackend {
  const http = openUndiciOrigin(url, { connectTimeoutMs: 1000, connections: 64 });
  const backend = createDaemonBackend({ id: "pool/daemon", http, poolKey, ...changes });
  cleanUps.push(() => backend.close());
  return backend;
}
