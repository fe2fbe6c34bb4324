import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer, type Server } from "node:http";
import { setInterval } from "node:timers/promises";
import type { CreateEngine, Engine, EngineEvent, EngineOptions } from "../../engine/engine.ts";
import { SluiceError } from "../../errors.ts";
import { Generations } from "./generations.ts";
import { KvFeed } from "./kv-feed.ts";
import { daemonMetrics } from "./metrics.ts";
import { heartbeatEveryMs, type InfoBody, protocolVersion } from "./protocol.ts";
import { daemonRoutes } from "./routes.ts";
import { producesToken } from "./warm-up.ts";

/** What the daemon must know of the model's tokenizer: bytes for grammar masks, hashes for `/v1/info`. */
export interface DaemonVocabulary {
  readonly tokens: readonly Uint8Array[];
  readonly stopIds: readonly number[];
  readonly vocabularyHash: string;
  readonly tokenizerFingerprint: string;
}

/** The parts a daemon is built of; `start.ts` names the real ones. */
export interface DaemonParts {
  readonly createEngine: CreateEngine;
  readonly openVocabulary: (model: string) => Promise<DaemonVocabulary>;
}

export interface DaemonOptions {
  /** `.gguf` file or a folder with config.json and *.safetensors. */
  readonly model: string;
  /** Default 127.0.0.1. Anything but loopback needs `poolKey`. */
  readonly host?: string;
  /** Default 8100; 0 = any free one. */
  readonly port?: number;
  /** Bearer of every /v1 call and key of the artifacts' MACs. */
  readonly poolKey?: string | undefined;
  readonly precision: EngineOptions["precision"];
  readonly threads: number;
  readonly kvTokens: number;
  readonly maxRows: number;
  readonly maxStepTokens?: number;
  readonly maxQueued?: number;
  readonly grammarCacheBytes?: number;
  readonly bodyBytes?: number;
  readonly grammarBytes?: number;
  /** Unread bytes of one answer before its reader counts as gone. */
  readonly answerBufferBytes?: number;
  /** The same for a stream, whose loss ends all its generations. */
  readonly streamBufferBytes?: number;
  /** Streams open at once: one a gateway thread. */
  readonly maxStreams?: number;
  /** `/healthz` is red when no step has finished for this long while there is work. */
  readonly stallMs?: number;
  /** Between signs of life: heartbeats of KV feeds and `progress` of generations that wait. */
  readonly heartbeatMs?: number;
  /** How long `close` and `/v1/drain` let running generations go on. */
  readonly drainMs?: number;
  readonly onLoadProgress?: (fraction: number) => void;
}

export interface Daemon {
  readonly url: string;
  readonly engine: Engine;
  /** Stops accepting, drains, cancels what is left, frees the engine. */
  close(): Promise<void>;
}

const defaults = {
  maxStepTokens: 512,
  maxQueued: 512,
  grammarCacheBytes: 256 * 1024 * 1024,
  bodyBytes: 16 * 1024 * 1024,
  grammarBytes: 32 * 1024 * 1024,
  answerBufferBytes: 256 * 1024,
  streamBufferBytes: 1024 * 1024,
  maxStreams: 256,
  stallMs: 10_000,
  drainMs: 30_000,
  heartbeatMs: heartbeatEveryMs,
};

/**
 * Loads the model, produces one token, then listens: whoever can connect finds a daemon that works.
 * Throws SluiceError `pool_key_required` for a host off loopback without a key, and whatever loading the model throws.
 */
export async function serveDaemon(given: DaemonOptions, parts: DaemonParts): Promise<Daemon> {
  const options = { ...defaults, host: "127.0.0.1", port: 8100, ...given };
  if (!isLoopback(options.host) && (options.poolKey ?? "") === "") {
    throw new SluiceError({
      status: 500,
      type: "server_error",
      code: "pool_key_required",
      message: `A daemon that listens on ${options.host} needs a pool key; without one it listens on loopback only.`,
    });
  }

  const vocabulary = await parts.openVocabulary(options.model);
  const instance = randomUUID();
  // The engine's callbacks come before the objects they feed; nothing is delivered until those exist.
  const deliver: { events: (events: readonly EngineEvent[]) => void; kv: () => void } = { events() {}, kv() {} };
  const engine = await parts.createEngine(
    {
      model: options.model,
      precision: options.precision,
      threads: options.threads,
      kvTokens: options.kvTokens,
      maxRows: options.maxRows,
      maxStepTokens: options.maxStepTokens,
      maxQueued: options.maxQueued,
      grammarCacheBytes: options.grammarCacheBytes,
      vocabulary: { tokens: vocabulary.tokens, stopIds: vocabulary.stopIds },
    },
    {
      onEvents: (events) => deliver.events(events),
      onKvChange: () => deliver.kv(),
      onLoadProgress: (fraction) => options.onLoadProgress?.(fraction),
    },
  );

  try {
    await producesToken(engine, (listener) => {
      deliver.events = listener;
    });
  } catch (error) {
    await engine.close();
    throw error;
  }

  const generations = new Generations({
    cancel: (id) => engine.cancel(id),
    maxBufferedBytes: { answer: options.answerBufferBytes, stream: options.streamBufferBytes },
    maxStreams: options.maxStreams,
  });
  const feed = new KvFeed({ engine, instance, maxBufferedBytes: 4 * 1024 * 1024, maxSubscribers: 64 });
  deliver.events = (events) => generations.deliver(events);
  deliver.kv = () => feed.changed();

  let draining: Promise<void> | undefined;
  const drain = () => {
    draining ??= engine.drain(options.drainMs).then(() => {
      generations.breakAll("draining", "The daemon is shutting down.", true);
    });
    return draining;
  };
  const unhealthy = () => {
    const { healthy, stalledMs } = engine.stats();
    if (!healthy) return "the engine failed";
    return stalledMs > options.stallMs ? "the engine has stalled" : undefined;
  };

  const server = createServer(
    { keepAliveTimeout: 65_000, requestTimeout: 60_000, headersTimeout: 10_000 },
    daemonRoutes({
      engine,
      info: infoBody(engine, vocabulary, instance),
      poolKey: options.poolKey,
      generations,
      feed,
      metrics: daemonMetrics({ stats: () => engine.stats(), generations, kvSubscribers: () => feed.size }),
      unhealthy,
      notReady: () => unhealthy() ?? (draining === undefined ? undefined : "draining"),
      // A failed drain shows in /readyz and in close(); the caller of /v1/drain has its 202 by then.
      drain: () => void drain().catch(() => {}),
      draining: () => draining !== undefined,
      bounds: { bodyBytes: options.bodyBytes, grammarBytes: options.grammarBytes },
    }),
  );
  // Each queued or running generation holds one; the rest is for probes, feeds and uploads.
  server.maxConnections = options.maxQueued + options.maxRows + options.maxStreams + 512;
  const url = await listen(server, options.host, options.port);
  const stop = new AbortController();
  const tellWaiting = whenAdvanced(engine, () => generations.tellWaiting());
  void beat(options.heartbeatMs, stop.signal, () => {
    feed.heartbeat();
    tellWaiting();
    generations.heartbeat();
  });

  return {
    url,
    engine,
    async close() {
      const closed = once(server, "close");
      server.close();
      await drain();
      stop.abort();
      feed.close();
      generations.closeStreams();
      // Lets the last lines out; an idle keep-alive connection would hold the server open for its whole timeout.
      server.closeIdleConnections();
      const force = new AbortController();
      void beat(500, force.signal, () => server.closeAllConnections());
      await closed;
      force.abort();
      await engine.close();
    },
  };
}

export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || /^127\.\d+\.\d+\.\d+$/.test(host);
}

function infoBody(engine: Engine, vocabulary: DaemonVocabulary, instance: string): InfoBody {
  const { model, blockSize, contextLength, kvTokens, maxRows } = engine.info;
  return {
    protocol: protocolVersion,
    instance,
    model,
    vocabularyHash: vocabulary.vocabularyHash,
    tokenizerFingerprint: vocabulary.tokenizerFingerprint,
    blockSize,
    contextLength,
    kvTokens,
    maxRows,
    grammarEngines: ["xgrammar", "automaton"],
    roles: ["prefill", "decode"],
    parallel: { tensor: 1, expert: 1, pipeline: 1 },
  };
}

async function listen(server: Server, host: string, port: number): Promise<string> {
  server.listen(port, host);
  await once(server, "listening");
  const address = server.address();
  const bound = typeof address === "object" && address !== null ? address.port : port;
  return `http://${host.includes(":") ? `[${host}]` : host}:${bound}`;
}

async function beat(everyMs: number, signal: AbortSignal, action: () => void): Promise<void> {
  try {
    for await (const _ of setInterval(everyMs, undefined, { signal, ref: false })) action();
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

/** Runs `action` only if the engine has finished a step since the last time: no sign of life from a stalled engine. */
function whenAdvanced(engine: Engine, action: () => void): () => void {
  let steps = engine.stats().steps;
  return () => {
    const now = engine.stats().steps;
    if (now === steps) return;
    steps = now;
    action();
  };
}
