import type { Environment } from "../../config/parse.ts";
import { followConfig } from "../../config/reload.ts";
import type { Config } from "../../config/schema.ts";
import { createAutomatonCompiler } from "../../grammar/automaton/compiler.ts";
import { createGrammarCompiler } from "../../grammar/compiler.ts";
import { DEFAULT_POLICY } from "../../grammar/policy.ts";
import { createLogger, type Logger } from "../../telemetry/logs.ts";
import { openTokenizer } from "../../tokenizer/node.ts";
import { saltKeyOf } from "../tenants/salt-key.ts";
import { nodeClock } from "./node-exchange.ts";
import { GatewayPart, listenWith, type PartOptions } from "./node-part.ts";
import type { ModelParts } from "./node-services.ts";
import { canShare } from "./threads/port.ts";
import { startThreads } from "./threads/start.ts";

export interface StartGatewayOptions {
  readonly config: Config;
  /** Where `config` came from: then the gateway reads it again on SIGHUP and when it changes. */
  readonly configPath?: string | undefined;
  /** Where secrets come from; default the process's own environment. */
  readonly environment?: Environment;
  /** Takes the log, a line a call; default stderr. */
  readonly write?: (line: string) => void;
  /** Event loops that serve it, each with connections of its own; default 1. */
  readonly threads?: number | undefined;
  /** Called once, when every model has a backend that has produced a token. */
  readonly onReady?: () => void;
  /** Of the main thread; functions do not travel to others. */
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
  openGrammars: ({ vocabulary }, { grammar, bounds }) => {
    const options = {
      policy: { ...DEFAULT_POLICY, propertyOrder: grammar.propertyOrder },
      budget: { bytes: bounds.grammarBytes },
      cacheBytes: bounds.grammarCacheBytes,
    };
    const xgrammar = createGrammarCompiler({ ...options, vocabulary, cpuMs: bounds.grammarCompile });
    return grammar.engine === "automaton" ? createAutomatonCompiler({ ...options, others: xgrammar }) : xgrammar;
  },
};

/** The gateway on Node, listening. Throws SluiceError for what keeps it from starting. */
export async function startGateway(options: StartGatewayOptions): Promise<RunningGateway> {
  const { config, environment = process.env, threads = 1 } = options;
  const write = options.write ?? bufferedStderr();
  const fields = threads > 1 ? { thread: 0 } : undefined;
  const log = createLogger({ write, wall: nodeClock.wall, content: config.telemetry.content, fields });
  const saltKey = saltKeyOf(config, environment);
  const parts = { ...nodeParts, ...options.parts };
  const { part, listening, crew } = await start({ config, environment, log, write, saltKey, parts, threads });
  const stopped = new AbortController();

  const apply = async (next: Config): Promise<void> => {
    const built = await part.build(next);
    await crew?.build(next);
    const before = part.config;
    try {
      part.commit(next, built);
    } catch (error) {
      crew?.abandon();
      throw error;
    }
    await crew?.commit(next);
    if (next.listen.host !== before.listen.host) log.warn("listen_unchanged", { reason: "it takes a restart" });
    if (next.bounds.kvIndexBlocks !== before.bounds.kvIndexBlocks) {
      log.warn("kv_index_unchanged", { reason: "it takes a restart" });
    }
    log.info("config_applied", { models: Object.keys(next.models), tenants: Object.keys(next.tenants).length });
  };
  const reloader = options.configPath === undefined ? undefined : follow(options.configPath, environment, apply, log);

  void Promise.all([part.dispatcher.untilReady(stopped.signal), crew?.untilReady()]).then(
    () => {
      log.info("ready", { url: listening.url });
      options.onReady?.();
    },
    // Closed before it was ready.
    () => {},
  );
  log.info("listening", { url: listening.url, threads: crew === undefined ? 1 : threads });
  return {
    url: listening.url,
    port: listening.port,
    async close(graceMs = part.config.bounds.drain) {
      reloader?.close();
      // What the other threads still have open may need this one's grammar compiler.
      await Promise.all([listening.close(graceMs), crew?.close(graceMs)]);
      stopped.abort();
      await part.free();
    },
  };
}

/** On several threads where that is asked for and the system can do it. */
async function start(options: PartOptions & { readonly threads: number; readonly write: (line: string) => void }) {
  const { config, log, threads } = options;
  if (threads > 1 && (await canShare(config.listen))) return await startThreads(options);
  if (threads > 1) log.warn("threads_unavailable", { reason: "this system cannot share a port", threads: 1 });
  const part = await GatewayPart.open(options);
  return { part, listening: await listenWith(part, config.listen), crew: undefined };
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
