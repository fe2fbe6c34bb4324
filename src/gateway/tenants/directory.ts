import { configFault, configPath } from "../../config/parse.ts";
import type { Config } from "../../config/schema.ts";
import type { Tenant } from "../request.ts";
import { type GateLimits, TenantGate } from "./gate.ts";

export interface TenantEntry {
  readonly tenant: Tenant;
  /** The salt of models whose prefixes all tenants share. */
  readonly sharedSalt: string;
  readonly gate: TenantGate;
  readonly limits: GateLimits;
}

/** Who may call: found by the sha256 of a key, so neither the file nor the process's tables hold one. */
export interface TenantDirectory {
  /** `hash`: 64 lower-case hex digits. */
  find(hash: string): TenantEntry | undefined;
}

/** Waiting for a place in preparation is bounded by this many times the places. */
const waitingPerPlace = 4;

/**
 * `gates` outlive a reload: what a tenant has running keeps counting under the new limits. `saltKey` must stay the same
 * over a reload too, or every cached prefix is lost.
 */
export async function createDirectory(
  config: Config,
  saltKey: Uint8Array<ArrayBuffer>,
  gates: Map<string, TenantGate>,
  openGate: (tenant: string) => TenantGate = () => new TenantGate(),
): Promise<TenantDirectory> {
  const key = await crypto.subtle.importKey("raw", saltKey, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  const salt = async (text: string): Promise<string> => {
    const mac = new Uint8Array(await crypto.subtle.sign("HMAC", key, new TextEncoder().encode(text)));
    return Array.from(mac.subarray(0, 16), (byte) => byte.toString(16).padStart(2, "0")).join("");
  };
  const sharedSalt = await salt("shared");
  const byHash = new Map<string, TenantEntry>();
  for (const [name, entry] of Object.entries(config.tenants)) {
    const { preparing, bodyBytes } = config.bounds;
    const limits: GateLimits = {
      preparing,
      waiting: preparing * waitingPerPlace,
      concurrency: entry.concurrency,
      bytes: preparing * bodyBytes,
    };
    const gate = gates.get(name) ?? openGate(name);
    gates.set(name, gate);
    const tenant: Tenant = {
      name,
      models: entry.models === undefined ? undefined : new Set(entry.models),
      priority: entry.priority,
      weight: entry.weight,
      salt: await salt(`tenant:${name}`),
    };
    entry.keys.forEach((hash, index) => {
      if (byHash.has(hash)) {
        throw configFault(configPath(["tenants", name, "keys", index]), "another tenant has this key");
      }
      byHash.set(hash, { tenant, sharedSalt, gate, limits });
    });
  }
  return { find: (hash) => byHash.get(`sha256:${hash}`) };
}
