import { randomBytes } from "node:crypto";
import { mkdir, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { homeFolders } from "../../config/home.ts";
import { CommandError, exitCode } from "../exit.ts";
import { writeAtomically } from "../home.ts";
import { type Progress, progress } from "../output.ts";
import { gatewayConfig } from "./plan.ts";
import { firstAnswer } from "./probe.ts";
import { SupervisedProcess } from "./process.ts";

export interface SupervisorOptions {
  readonly host: string;
  /** 0 = any free one. */
  readonly port: number;
  readonly daemons: number;
  readonly gatewayThreads: number;
  readonly model: string;
  readonly modelPath: string;
  /** Arguments that every `sluice daemon` gets: threads, precision, sizes. */
  readonly daemonArgs: readonly string[];
  readonly key: string;
  readonly drainMs: number;
  /** Program and first arguments that run `sluice` in a process of its own. */
  readonly command: readonly string[];
  readonly onLine: (name: string, line: string) => void;
}

export interface Running {
  readonly url: string;
  pids(): { readonly supervisor: number; readonly gateway: number; readonly daemons: readonly number[] };
}

const poolKeyEnv = "SLUICE_POOL_KEY";

/** Gateway and daemons as processes of their own under one roof. Started once, stopped once. */
export class Supervisor {
  readonly #options: SupervisorOptions;
  readonly #daemons: SupervisedProcess[] = [];
  #gateway: SupervisedProcess | undefined;
  #configPath: string | undefined;
  readonly #lost = Promise.withResolvers<never>();

  constructor(options: SupervisorOptions) {
    this.#options = options;
    // Whoever awaits `lost` sees the rejection; until then it is not an unhandled one.
    this.#lost.promise.catch(() => {});
  }

  /** Rejects when a process is gone for good. */
  get lost(): Promise<never> {
    return this.#lost.promise;
  }

  /**
   * Resolves when a token went all the way from a daemon through the gateway to a caller. Throws CommandError when
   * something cannot start, or the signal's reason.
   */
  async start(signal: AbortSignal): Promise<Running> {
    const { host, model, key } = this.#options;
    // A key of this run only: other users of the machine cannot talk to the daemons behind the gateway's back.
    const env = { [poolKeyEnv]: randomBytes(32).toString("base64url") };
    const aborted = new Promise<never>((_, reject) => {
      signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    });
    aborted.catch(() => {});

    const bar = progress("loading the model");
    let endpoints: string[];
    try {
      endpoints = await Promise.race([this.#startDaemons(env, bar), aborted]);
    } finally {
      bar.end();
    }

    const folder = join(homeFolders().state, "run");
    await mkdir(folder, { recursive: true, mode: 0o700 });
    this.#configPath = join(folder, `up-${process.pid}.json`);
    const plan = { ...this.#options, daemons: endpoints, key, poolKeyEnv };
    await writeAtomically(this.#configPath, JSON.stringify(gatewayConfig(plan), undefined, 2));
    const gateway = this.#process("gateway", env, (url) => [
      ...["gateway", "--config", this.#configPath ?? "", "--threads", String(this.#options.gatewayThreads)],
      // The port of the first start, also where the configuration says "any".
      ...(url === undefined ? [] : ["--port", url.port]),
    ]);
    this.#gateway = gateway;
    const url = await Promise.race([gateway.start(), aborted]);
    await Promise.race([firstAnswer({ url, key, model }, signal), this.lost, aborted]);
    return { url: displayUrl(url, host), pids: () => this.#pids() };
  }

  async #startDaemons(env: Readonly<Record<string, string>>, bar: Progress): Promise<string[]> {
    const { daemons, modelPath, daemonArgs } = this.#options;
    const loaded = new Array<number>(daemons).fill(0);
    for (let index = 0; index < daemons; index++) {
      const args = (url: URL | undefined) => [
        ...["daemon", "--model", modelPath, "--pool-key-env", poolKeyEnv],
        ...["--port", url?.port ?? "0", ...daemonArgs],
      ];
      const onProgress = (fraction: number) => {
        loaded[index] = fraction;
        bar.update(loaded.reduce((sum, part) => sum + part, 0) / daemons);
      };
      this.#daemons.push(this.#process(`daemon ${index + 1}`, env, args, onProgress));
    }
    return await Promise.all(this.#daemons.map((daemon) => daemon.start()));
  }

  #process(
    name: string,
    env: Readonly<Record<string, string>>,
    args: (url: URL | undefined) => readonly string[],
    onProgress: (fraction: number) => void = () => {},
  ): SupervisedProcess {
    const line = (text: string) => this.#options.onLine(name, text);
    return new SupervisedProcess(this.#options.command, {
      name,
      args,
      env,
      onProgress,
      onLine: line,
      onRestart: (url) => line(`runs again at ${url}`),
      onLost: (error) => this.#lost.reject(error),
    });
  }

  #pids() {
    const daemons = this.#daemons.map((daemon) => daemon.pid ?? 0);
    return { supervisor: process.pid, gateway: this.#gateway?.pid ?? 0, daemons };
  }

  /** The gateway first, since its streams need the daemons; each bounded by `drainMs`. */
  async stop(): Promise<void> {
    const { drainMs } = this.#options;
    await this.#gateway?.stop(drainMs);
    await Promise.all(this.#daemons.map((daemon) => daemon.stop(Math.min(drainMs, 5_000))));
    if (this.#configPath !== undefined) await rm(this.#configPath, { force: true });
  }

  kill(): void {
    this.#gateway?.kill();
    for (const daemon of this.#daemons) daemon.kill();
  }
}

/** 0.0.0.0 is no address to call. */
function displayUrl(url: string, host: string): string {
  return host === "0.0.0.0" || host === "::" ? url.replace(/\/\/[^/]*:/, "//127.0.0.1:") : url;
}

/**
 * A port that is free now: `wanted`, or one of the next 20 when `next` allows it. Throws CommandError otherwise.
 */
export async function freePort(host: string, wanted: number, next: boolean): Promise<number> {
  if (wanted === 0) return 0;
  const last = next ? wanted + 20 : wanted;
  for (let port = wanted; port <= last; port++) {
    if (await canListen(host, port)) return port;
  }
  throw new CommandError(
    next ? `Ports ${wanted} to ${last} are all taken.` : `Port ${wanted} is taken. Choose another, or 0 for any.`,
    exitCode.unavailable,
  );
}

async function canListen(host: string, port: number): Promise<boolean> {
  const server = createServer();
  const listens = await new Promise<boolean>((resolve) => {
    server.once("error", () => resolve(false));
    server.listen({ host, port, exclusive: true }, () => resolve(true));
  });
  if (listens) await new Promise<void>((resolve) => server.close(() => resolve()));
  return listens;
}
