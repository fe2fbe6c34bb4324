import { backendOpener } from "../../backends/open.ts";
import { openUndiciOrigin } from "../../backends/undici.ts";
import type { Environment } from "../../config/parse.ts";
import { followConfig } from "../../config/reload.ts";
import type { Config } from "../../config/schema.ts";
import { createGrammarCompiler } from "../../grammar/compiler.ts";
import { DEFAULT_POLICY } from "../../grammar/policy.ts";
import { createLogger, type Logger } from "../../telemetry/logs.ts";
import { startTracing } from "../../telemetry/otel.ts";
import { openTokenizer } from "../../tokenizer/node.ts";
import { createApp } from "../app.ts";
import { createDispatcher } from "../dispatch/dispatch.ts";
import { Gateway } from "../gateway.ts";
import { createNodePlatform } from "./node-exchange.ts";
import { listen } from "./node-server.ts";
import { type ModelParts, NodeServices } from "./node-services.ts";

export interface StartGatewayOptions {
  readonly config: Config;
  /** Where `config` came from: then the gateway reads it again on SIGHUP and when it changes. */
  readonly configPath?: string | undefined;
  /** Where secrets come from; default the process's own environment. */
  readonly environment?: Environment;
  /** Takes the log, a line a call; default stderr. */
  readonly write?: (line: string) => void;
  /** Called once, when every model has a backend that has produced a token. */
  readonly onReady?: () => void;
  readonly parts?: Partial<ModelParts>;
}

export interface RunningGateway {
  readonly url: string;
  readonly port: number;
  /**
   * Takes no more requests, lets open answers finish for up to `graceMs` (default: the configuration's `bounds.drain`),
   * ends the rest with an in-band error, and frees everything.
   */
  close(graceMs?: number): Promise<void>;
}

const nodeParts: ModelParts = {
  openTokenizer: (reference) => openTokenizer(reference),
  openGrammars: ({ vocabulary }, { grammar, bounds }) =>
    createGrammarCompiler({
      vocabulary,
      policy: { ...DEFAULT_POLICY, propertyOrder: grammar.propertyOrder },
      budget: { bytes: bounds.grammarBytes },
      timeoutMs: bounds.grammarCompile,
      cacheBytes: bounds.grammarCacheBytes,
    }),
};

/** The gateway on Node, listening. Throws SluiceError for what keeps it from starting. */
export async function startGateway(options: StartGatewayOptions): Promise<RunningGateway> {
  const { environment = process.env } = options;
  let { config } = options;
  const platform = createNodePlatform();
  const log = createLogger({
    write: options.write ?? bufferedStderr(),
    wall: platform.clock.wall,
    content: config.telemetry.content,
  });
  const services = new NodeServices(config, environment, { ...nodeParts, ...options.parts });
  const built = await services.build(config);
  const dispatcher = createDispatcher({
    config,
    openBackend: backendOpener({ openHttp: openUndiciOrigin, env: (name) => environment[name] }),
    clock: platform.clock,
    vocabularyHash: (model) => services.vocabularyHash(config, model),
    codec: (model) => services.tokenizer(config, model),
  });
  const { tracing, close: closeTracing } = await startTracing(config.telemetry.otlp, "sluice-gateway", environment);
  const gateway = new Gateway({ platform, log, tracing, services: { ...built, dispatcher }, gates: services.gates });
  const stopped = new AbortController();
  const free = async (): Promise<void> => {
    stopped.abort();
    await dispatcher.close();
    await services.close();
    await closeTracing();
  };
  const listening = await listen(gateway, createApp(gateway), config.listen).catch(async (error: unknown) => {
    await free();
    throw error;
  });

  const apply = async (next: Config): Promise<void> => {
    // What the running configuration does not name was left open for requests that had begun; they are long done.
    await services.retire(config);
    const rebuilt = await services.build(next);
    dispatcher.reconfigure(next);
    if (next.listen.host !== config.listen.host) log.warn("listen_unchanged", { reason: "it takes a restart" });
    config = next;
    gateway.services = { ...rebuilt, dispatcher };
    log.info("config_applied", { models: Object.keys(next.models), tenants: Object.keys(next.tenants).length });
  };
  const reloader = options.configPath === undefined ? undefined : follow(options.configPath, environment, apply, log);

  void dispatcher.untilReady(stopped.signal).then(
    () => {
      log.info("ready", { url: listening.url });
      options.onReady?.();
    },
    // Closed before it was ready.
    () => {},
  );
  log.info("listening", { url: listening.url });
  return {
    url: listening.url,
    port: listening.port,
    async close(graceMs = config.bounds.drain) {
      reloader?.close();
      await listening.close(graceMs);
      await free();
    },
  };
}

const follow = (file: string, environment: Environment, apply: (config: Config) => Promise<void>, log: Logger) =>
  followConfig({
    file,
    environment,
    apply,
    onRefused: (error) => log.error("config_refused", { path: error.param, reason: error.message, file }),
  });

/** Writing to a pipe blocks the loop, so all lines of one turn go in one write. */
function bufferedStderr(): (line: string) => void {
  let lines = "";
  const flush = (): void => {
    const text = lines;
    lines = "";
    if (text !== "") process.stderr.write(text);
  };
  process.once("exit", flush);
  return (line) => {
    if (lines === "") setImmediate(flush);
    lines += line;
  };
}
