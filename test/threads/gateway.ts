import { createHash } from "node:crypto";
import { mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import type { Worker } from "node:worker_threads";
import { Agent, request } from "undici";
import { type Daemon, type DaemonOptions, serveDaemon } from "../../src/backends/daemon/server.ts";
import { loadConfig } from "../../src/config/load.ts";
import { type RunningGateway, startGateway } from "../../src/gateway/platform/node.ts";
import { byteTokenizer, byteTokenizerFiles } from "../../src/gateway/testing/tokenizer.ts";
import { type HashEngine, type HashEngineOptions, hashEngineParts } from "../support/hash-engine.ts";

export interface ThreadedOptions {
  readonly threads: number;
  readonly daemons?: number;
  readonly engine?: HashEngineOptions;
  readonly daemon?: Partial<DaemonOptions>;
  /** Further parts of the configuration, merged over the default one. */
  readonly config?: Readonly<Record<string, unknown>>;
  readonly tenant?: Readonly<Record<string, unknown>>;
}

export interface Answer {
  readonly status: number;
  readonly text: string;
}

/** A gateway of several threads before daemons with hash engines: real sockets, real threads, no model. */
export interface Threaded {
  readonly gateway: RunningGateway;
  readonly url: string;
  /** Its configuration. */
  readonly file: string;
  readonly daemons: readonly Daemon[];
  readonly engines: readonly HashEngine[];
  readonly log: ReadonlyArray<Readonly<Record<string, unknown>>>;
  /** The further threads that have been started, in order. */
  readonly workers: readonly Worker[];
  /** Resolves with the first line of this kind, logged already or to come. */
  logged(event: string): Promise<Readonly<Record<string, unknown>>>;
  /** One completion on a connection of its own, so that any thread may get it. */
  ask(
    prompt: string,
    fields?: Readonly<Record<string, unknown>>,
    signal?: AbortSignal,
    /** Of another gateway with the same configuration. */
    elsewhere?: string,
  ): Promise<Answer>;
  get(path: string): Promise<Answer>;
  /** GET with another key. */
  as(key: string, path: string): Promise<Answer>;
  /**
   * Runs `ask` while no engine goes on, and lets them go on when `count` generations more have come to them: whatever the
   * machine, all of these are under way at once then.
   */
  together<T>(count: number, ask: () => T): Promise<T>;
  /** Replaces the configuration file. */
  write(changes: Readonly<Record<string, unknown>>): Promise<void>;
  close(graceMs?: number): Promise<void>;
}

const key = "sk-threads";
/** A test decides itself how long an engine stands still. */
export const deadlines = { firstToken: "5m", betweenTokens: "5m" };
export const keyHash = (text: string): string => `sha256:${createHash("sha256").update(text).digest("hex")}`;

export async function startThreaded(options: ThreadedOptions): Promise<Threaded> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-threads-"));
  const files = byteTokenizerFiles();
  await writeFile(join(folder, "tokenizer.json"), files.tokenizer);
  await writeFile(join(folder, "tokenizer_config.json"), files.config);
  const { vocabularyHash } = (await byteTokenizer()).vocabulary;
  const engines: HashEngine[] = [];
  const daemons = await Promise.all(
    Array.from({ length: options.daemons ?? 1 }, () =>
      serveDaemon(
        {
          ...{
            model: "hash",
            port: 0,
            precision: "exact",
            threads: 1,
            kvTokens: 16_384,
            maxRows: 64,
            drainMs: 1_000,
            stallMs: 600_000,
          },
          ...options.daemon,
        },
        {
          ...hashEngineParts({ vocabularySize: 258, ...options.engine }, engines),
          openVocabulary: async () => ({ tokens: [], stopIds: [], vocabularyHash, tokenizerFingerprint: "bytes" }),
        },
      ),
    ),
  );
  const file = join(folder, "sluice.json");
  const write = async (changes: Readonly<Record<string, unknown>>) => {
    await writeFile(
      `${file}.new`,
      JSON.stringify({
        listen: { port: 0 },
        models: { m: { pools: ["all"], tokenizer: "file:tokenizer.json" } },
        pools: { all: { backend: "daemon", endpoints: daemons.map(({ url }) => url), deadlines } },
        tenants: { t: { keys: [keyHash(key)], ...options.tenant } },
        ...options.config,
        ...changes,
      }),
    );
    // In one piece: a gateway that reads half of it would refuse it.
    await rename(`${file}.new`, file);
  };
  await write({});
  const log: Array<Record<string, unknown>> = [];
  const waiting = new Set<() => void>();
  const workers: Worker[] = [];
  const started = (worker: Worker): void => void workers.push(worker);
  process.on("worker", started);
  const ready = Promise.withResolvers<void>();
  const gateway = await startGateway({
    config: await loadConfig(file),
    configPath: file,
    threads: options.threads,
    write(line) {
      log.push(JSON.parse(line));
      for (const look of waiting) look();
    },
    onReady: ready.resolve,
  });
  await ready.promise;
  const { url } = gateway;
  const agent = new Agent({ pipelining: 0 });
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
  const get = async (path: string, more: Readonly<Record<string, string>>): Promise<Answer> => {
    const { statusCode, body } = await request(url + path, { dispatcher: agent, reset: true, headers: more });
    return { status: statusCode, text: await body.text() };
  };
  return {
    gateway,
    url,
    file,
    daemons,
    engines,
    log,
    workers,
    logged(event) {
      return new Promise((resolve) => {
        const look = (): void => {
          const found = log.find((line) => line.event === event);
          if (found === undefined) return;
          waiting.delete(look);
          resolve(found);
        };
        waiting.add(look);
        look();
      });
    },
    async ask(prompt, fields = {}, signal, elsewhere = url) {
      const { statusCode, body } = await request(`${elsewhere}/v1/completions`, {
        method: "POST",
        dispatcher: agent,
        reset: true,
        headers,
        body: JSON.stringify({ model: "m", prompt, max_tokens: 16, temperature: 0, seed: 7, ...fields }),
        ...(signal && { signal }),
      });
      return { status: statusCode, text: await body.text() };
    },
    get: (path) => get(path, {}),
    as: (other, path) => get(path, { authorization: `Bearer ${other}` }),
    async together(count, begin) {
      const submitted = () => engines.reduce((sum, engine) => sum + engine.submitted.length, 0);
      const wanted = submitted() + count;
      for (const engine of engines) engine.pause();
      const begun = begin();
      while (submitted() < wanted) await setImmediate();
      for (const engine of engines) engine.resume();
      return begun;
    },
    write,
    async close(graceMs = 0) {
      await gateway.close(graceMs);
      process.off("worker", started);
      await agent.destroy();
      await Promise.all(daemons.map((daemon) => daemon.close()));
      await rm(folder, { recursive: true, force: true });
    },
  };
}

/** What a streamed completion says, put together; throws where it does not end as it should. */
export function joined({ status, text }: Answer): string {
  if (status !== 200) throw new Error(`${status} ${text}`);
  if (!text.endsWith("data: [DONE]\n\n")) throw new Error(`not complete: ${text.slice(-200)}`);
  const chunks = text
    .split("\n\n")
    .flatMap((event) => (event.startsWith("data: {") ? [JSON.parse(event.slice(6))] : []));
  return chunks.map((chunk) => chunk.choices[0]?.text ?? "").join("");
}
