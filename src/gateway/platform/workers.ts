import type { ExecutionContext } from "hono";
import { parseConfig } from "../../config/parse.ts";
import { configSchema } from "../../config/schema.ts";
import { asSluiceError, SluiceError } from "../../errors.ts";
import { createLogger } from "../../telemetry/logs.ts";
import { noTracing } from "../../telemetry/spans.ts";
import { errorBody } from "../api/errors.ts";
import { createApp } from "../app.ts";
import { Gateway, type Services } from "../gateway.ts";
import { createDirectory } from "../tenants/directory.ts";
import { saltKeyOf } from "../tenants/salt-key.ts";
import { createWorkersPlatform } from "./workers-exchange.ts";

/** The Workers entry: the same app as on Node. `wrangler.toml` names this file. */

/** What wrangler binds. Further text bindings are the secrets that the configuration names. */
interface Bindings {
  /** The configuration's text. */
  readonly SLUICE_CONFIG?: string;
  /** Holds it under the key `config`, where it is too large for a variable. */
  readonly SLUICE_KV?: { get(key: string): Promise<string | null> };
  readonly [name: string]: unknown;
}

type App = ReturnType<typeof createApp>;

/** Without a configuration it still tells that it lives. */
const nothing = { models: {}, pools: {}, tenants: {} };

let built: { readonly text: string; readonly app: Promise<App> } | undefined;

export default {
  async fetch(request: Request, env: Bindings, context: ExecutionContext): Promise<Response> {
    try {
      const text = env.SLUICE_CONFIG ?? (await env.SLUICE_KV?.get("config")) ?? "";
      // One for an isolate's life, until the configuration changes.
      if (built?.text !== text) built = { text, app: build(text, env) };
      return await (await built.app).fetch(request, env, context);
    } catch (thrown) {
      built = undefined;
      const error = asSluiceError(thrown);
      return new Response(errorBody(error), { status: error.status, headers: { "content-type": "application/json" } });
    }
  },
};

async function build(text: string, env: Bindings): Promise<App> {
  const secrets: Record<string, string | undefined> = {};
  for (const [name, value] of Object.entries(env)) if (typeof value === "string") secrets[name] = value;
  const config = text === "" ? configSchema.parse(nothing) : parseConfig(text, secrets);
  const platform = createWorkersPlatform();
  const gates = new Map();
  const services: Services = {
    config,
    directory: await createDirectory(config, saltKeyOf(config, secrets), gates),
    // Tokenizers, grammars and the link to daemons need what only Node has so far; without them a model has no entry and
    // every call to it is answered with a 501 that says so.
    models: new Map(),
    dispatcher: noBackends,
  };
  // biome-ignore lint/suspicious/noConsole: a Worker's log is what it prints
  const log = createLogger({ write: (line) => console.log(line.trimEnd()), wall: platform.clock.wall });
  return createApp(new Gateway({ platform, log, tracing: noTracing, services, gates }));
}

const noBackends: Services["dispatcher"] = {
  // biome-ignore lint/correctness/useYield: it refuses before it can
  async *dispatch() {
    throw new SluiceError({
      status: 501,
      type: "server_error",
      code: "not_available_here",
      message: "This gateway has no way to its backends on this platform.",
    });
  },
  info: () => undefined,
  ready: () => false,
};
