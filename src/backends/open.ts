import type { Clock } from "../clock.ts";
import { type PoolConfig, undeclaredCapabilities } from "../config/schema.ts";
import { SluiceError } from "../errors.ts";
import type { Backend } from "./backend.ts";
import { createDaemonBackend } from "./daemon/client.ts";
import type { OpenHttpOrigin } from "./http.ts";
import { isMetadataAddress } from "./metadata-address.ts";
import { createOpenAIBackend } from "./openai.ts";

export interface BackendSpec {
  readonly poolName: string;
  readonly pool: PoolConfig;
  readonly endpoint: string;
}

export type OpenBackend = (spec: BackendSpec) => Backend;

export interface BackendOpenerOptions {
  readonly openHttp: OpenHttpOrigin;
  /** Looks up a secret by the name the configuration gives. */
  readonly env: (name: string) => string | undefined;
  /** Sockets to one endpoint; bounds the generations that one gateway may have running there. */
  readonly connections?: number;
  readonly clock?: Clock;
}

/** Stable over a configuration reload: the same pool and endpoint are the same backend. */
export function backendId(spec: { readonly poolName: string; readonly endpoint: string }): string {
  const { host, pathname } = new URL(spec.endpoint);
  return `${spec.poolName}/${host}${pathname.replace(/\/+$/, "")}`;
}

/** Throws SluiceError `invalid_endpoint` or `missing_secret` for what the configuration cannot mean. */
export function backendOpener(options: BackendOpenerOptions): OpenBackend {
  return (spec) => {
    const url = new URL(spec.endpoint);
    if (isMetadataAddress(url.hostname)) {
      throw configurationError("invalid_endpoint", `Pool "${spec.poolName}": an endpoint is a cloud metadata address.`);
    }
    const keyName = spec.pool.key?.env;
    const poolKey = keyName === undefined ? undefined : options.env(keyName);
    if (keyName !== undefined && (poolKey ?? "") === "") {
      throw configurationError("missing_secret", `Pool "${spec.poolName}": the environment has no ${keyName}.`);
    }
    const http = options.openHttp(url.origin, {
      connectTimeoutMs: spec.pool.deadlines.connect,
      connections: options.connections ?? 1024,
    });
    const basePath = url.pathname.replace(/\/+$/, "");
    const common = { id: backendId(spec), http, basePath };
    switch (spec.pool.backend) {
      case "daemon":
        return createDaemonBackend({ ...common, poolKey });
      case "openai":
        return createOpenAIBackend({
          ...common,
          host: url.host,
          key: poolKey,
          upstreamModel: spec.pool.upstreamModel,
          capabilities: spec.pool.capabilities ?? undeclaredCapabilities,
          health: spec.pool.health,
          ...(options.clock !== undefined && { clock: options.clock }),
        });
    }
  };
}

function configurationError(code: string, message: string): SluiceError {
  return new SluiceError({ status: 500, type: "server_error", code, message });
}
