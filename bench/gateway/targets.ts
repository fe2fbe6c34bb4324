import { writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Endpoint } from "./load.ts";
import type { Peers } from "./peers.ts";
import { message, type Spawned, start, untilAnswers } from "./processes.ts";
import { apiKey, apiKeyHash, modelName } from "./workload.ts";

/** Every gateway of the table, started as its documentation says, with one upstream behind it. */

const here = (name: string): string => fileURLToPath(new URL(name, import.meta.url));
const clone = fileURLToPath(new URL("../..", import.meta.url));

export const targetNames = [
  "sluice, daemon",
  "sluice, text upstream",
  "other sluice, daemon",
  "other sluice, text upstream",
  "bare hono",
  "portkey",
  "smg",
  "vllm-router",
] as const;
export type TargetName = (typeof targetNames)[number];

export interface Target {
  readonly name: TargetName;
  readonly process: Spawned;
  readonly endpoint: Endpoint;
}

export interface TargetInput {
  readonly core: number;
  /** For logs and configurations. */
  readonly folder: string;
  readonly textUrl: string;
  readonly tokenUrl: string;
  readonly tokenizer: string;
  readonly peers: Peers;
  /** Another clone of Sluice, to compare a change with what was before it. */
  readonly otherClone: string | undefined;
  /** Further arguments of `sluice gateway`. */
  readonly sluiceArgs: readonly string[];
  /** Arguments of Node for Sluice, such as a profiler's. */
  readonly sluiceNodeArgs: readonly string[];
}

/** Resolves when it answers. Throws with the end of its output when it does not. */
export async function startTarget(name: TargetName, input: TargetInput): Promise<Target> {
  const port = await freePort();
  const logFile = join(input.folder, `${name.replaceAll(/\W+/g, "-")}.log`);
  const spawnNode = (args: readonly string[], ipc = false): Spawned =>
    start(process.execPath, args, { core: input.core, logFile, ipc });
  const ready = async (spawned: Spawned, path: string, headers: Endpoint["headers"] = {}): Promise<Target> => {
    await untilAnswers(`http://127.0.0.1:${port}${path}`, spawned, logFile);
    return { name, process: spawned, endpoint: { port, headers } };
  };
  switch (name) {
    case "sluice, daemon":
    case "sluice, text upstream":
    case "other sluice, daemon":
    case "other sluice, text upstream": {
      const file = join(input.folder, `${port}.json`);
      writeFileSync(file, JSON.stringify(sluiceConfig(name, port, input)));
      const command = join(name.startsWith("other") ? (input.otherClone ?? "") : clone, "bin/sluice.mjs");
      const args = [...input.sluiceNodeArgs, command, "gateway", "--config", file, ...input.sluiceArgs];
      return ready(spawnNode(args), "/readyz", { authorization: `Bearer ${apiKey}` });
    }
    case "bare hono": {
      const spawned = spawnNode([here("bare-hono.ts"), input.textUrl, String(port)], true);
      await message(spawned);
      return ready(spawned, "/healthz");
    }
    case "portkey":
      return ready(spawnNode([input.peers.portkey, `--port=${port}`, "--headless"]), "/", {
        authorization: `Bearer ${apiKey}`,
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": `${input.textUrl}/v1`,
      });
    case "smg":
    case "vllm-router": {
      const router = name === "smg" ? input.peers.smg : input.peers.vllmRouter;
      const metrics = await freePort();
      const args = [
        ...(name === "smg" ? ["launch"] : []),
        ...["--host", "127.0.0.1", "--port", String(port), "--worker-urls", input.textUrl],
        // Their cheapest policy, and metrics as in production.
        ...["--policy", "round_robin", "--prometheus-port", String(metrics)],
      ];
      return ready(start(router, args, { core: input.core, logFile }), "/v1/models");
    }
  }
}

/** A production configuration: key, limits, routing, metrics and log on, each with its default. */
function sluiceConfig(name: TargetName, port: number, input: TargetInput): unknown {
  const pool = name.endsWith("daemon")
    ? { backend: "daemon", endpoints: [input.tokenUrl] }
    : { backend: "openai", endpoints: [`${input.textUrl}/v1`], upstreamModel: modelName };
  return {
    listen: { port },
    models: { [modelName]: { pools: ["only"], tokenizer: input.tokenizer } },
    pools: { only: pool },
    tenants: { acme: { keys: [apiKeyHash] } },
  };
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === "string") throw new Error("no free port");
  return address.port;
}
