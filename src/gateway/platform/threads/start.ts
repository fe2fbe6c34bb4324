import { configFault } from "../../../config/parse.ts";
import { expositionOf } from "../../../telemetry/metrics.ts";
import { Slots } from "../../routing/slots.ts";
import { TenantGate } from "../../tenants/gate.ts";
import { GateBell, maxTenants } from "../../tenants/gate-memory.ts";
import { nodeClock } from "../node-exchange.ts";
import { GatewayPart, listenWith, type PartOptions } from "../node-part.ts";
import type { Listening } from "../node-server.ts";
import { Crew } from "./crew.ts";
import { Readiness, sharedMemory } from "./memory.ts";

export interface Threads {
  /** The main thread's own part: it serves like the others, and leads them. */
  readonly part: GatewayPart;
  readonly listening: Listening;
  /** The others. */
  readonly crew: Crew;
}

/**
 * A gateway on `threads` threads of one process, this one included. All listen at one port; what decides about requests
 * lies in memory that they share (threads/memory.ts). Throws as `startGateway` does, with nothing left running.
 */
export async function startThreads(
  options: PartOptions & { readonly threads: number; readonly write: (line: string) => void },
): Promise<Threads> {
  const { config, environment, log, saltKey, threads, write } = options;
  const memory = sharedMemory(threads, config.bounds.kvIndexBlocks);
  const ready = new Readiness(memory);
  const backends = new Slots({ given: true });
  const pools = new Slots({ given: true });
  const tenants = new Slots({ capacity: maxTenants });
  const bell = new GateBell(memory.gates, 0);
  let part: GatewayPart | undefined;
  let crew: Crew | undefined;
  const counted = async () => (await part?.gateway.counted()) ?? [];
  const opened = await GatewayPart.open({
    ...options,
    openGate(tenant) {
      const slot = tenants.of(tenant);
      if (slot === undefined) throw configFault("tenants", `more than ${maxTenants} tenants have been named`);
      return new TenantGate({ memory: memory.gates, thread: 0, slot, bell });
    },
    share: {
      memory: memory.routing,
      thread: 0,
      backends,
      pools,
      onSeen: (backend, seen) => crew?.seen(backend, seen),
      onChange: () => ready.set(0, part?.dispatcher.ready() === true ? "ready" : "waiting"),
    },
    ready: () => ready.everywhere,
    expose: async () => crew?.expose() ?? expositionOf([await counted()]),
  });
  part = opened;
  const listening = await listenWith(opened, { ...config.listen, reusePort: true });
  crew = new Crew({
    memory,
    clock: nodeClock,
    log,
    write,
    begin: () => ({
      config: opened.config,
      tenants: tenants.all,
      slots: { backends: backends.all, pools: pools.all },
      seen: opened.pools.seen,
      environment: { ...environment },
      saltKey,
      host: config.listen.host,
      port: listening.port,
      clockZero: Number(process.hrtime.bigint()) / 1e6 - performance.now(),
    }),
    grammars: (key) => opened.services.grammars(key),
    counted,
    onSuspect: (backend) => opened.pools.suspected(backend),
    given: () => ({ tenants: tenants.size, backends: backends.size }),
  });
  try {
    await crew.start();
  } catch (error) {
    await listening.close(0);
    await opened.free();
    throw error;
  }
  return { part: opened, listening, crew };
}
