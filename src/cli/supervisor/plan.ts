import { createHash } from "node:crypto";
import { basename, join } from "node:path";
import type { z } from "zod";
import type { configSchema } from "../../config/schema.ts";

/** The embedded defaults of `sluice up`, as the same configuration file an operator would write. Pure. */

export interface UpPlan {
  readonly host: string;
  readonly port: number;
  /** The name callers use. */
  readonly model: string;
  /** The model's file or folder. */
  readonly modelPath: string;
  readonly daemons: readonly string[];
  readonly key: string;
  /** Environment variable that holds the key between gateway and daemons. */
  readonly poolKeyEnv: string;
}

export type ConfigFile = z.input<typeof configSchema>;

export function gatewayConfig(plan: UpPlan): ConfigFile {
  return {
    listen: { host: plan.host, port: plan.port },
    models: { [plan.model]: { pools: ["local"], tokenizer: tokenizerReference(plan.modelPath) } },
    pools: {
      local: {
        backend: "daemon",
        endpoints: [...plan.daemons],
        key: { env: plan.poolKeyEnv },
        // A shared laptop core prefills a long prompt for many seconds; progress events restart the count.
        deadlines: { firstToken: "60s", betweenTokens: "30s" },
      },
    },
    tenants: {
      development: { keys: [`sha256:${createHash("sha256").update(plan.key).digest("hex")}`] },
    },
  };
}

/** Where a model's tokenizer lies: inside a GGUF, beside a checkpoint's weights. */
export function tokenizerReference(modelPath: string): string {
  return modelPath.endsWith(".gguf") ? `gguf:${modelPath}` : `file:${join(modelPath, "tokenizer.json")}`;
}

/** The name callers use: a known name itself, else made of the file's (`Some-Model.Q4_1.gguf` -> `some-model`). */
export function modelName(reference: string, modelPath: string): string {
  if (/^[a-z0-9][a-z0-9_-]*$/i.test(reference)) return reference.toLowerCase();
  const name = basename(modelPath)
    .replace(/\.gguf$/i, "")
    .replace(/\.(I?Q\d\w*|F16|F32|BF16)$/i, "");
  return name === "" ? "model" : name.toLowerCase();
}

/** Threads of each daemon: the cores shared out, at least one. */
export function threadsPerDaemon(cores: number, daemons: number): number {
  return Math.max(1, Math.floor(cores / daemons));
}
