import { backendOpener } from "../../backends/open.ts";
import { openUndiciOrigin } from "../../backends/undici.ts";
import type { Environment } from "../../config/parse.ts";
import type { Config } from "../../config/schema.ts";
import type { Logger } from "../../telemetry/logs.ts";
import { startTracing } from "../../telemetry/otel.ts";
import { createApp } from "../app.ts";
import { createDispatcher, type Dispatcher } from "../dispatch/dispatch.ts";
import { Gateway, type Services } from "../gateway.ts";
import { Pools } from "../routing/pools.ts";
import { alone, type RoutingShare, takeMemory } from "../routing/share.ts";
import { createNodePlatform } from "./node-exchange.ts";
import { type ListenAddress, type Listening, listen } from "./node-server.ts";
import { NodeServices, type NodeServicesOptions } from "./node-services.ts";
import type { PlatformClock } from "./platform.ts";

export interface PartOptions extends NodeServicesOptions {
  readonly config: Config;
  readonly environment: Environment;
  readonly log: Logger;
  readonly clock?: PlatformClock | undefined;
  /** Absent = the gateway has one thread. */
  readonly share?: RoutingShare | undefined;
  /** What `/readyz` says; default: this part's own dispatcher. */
  readonly ready?: (() => boolean) | undefined;
  readonly expose?: (() => Promise<string>) | undefined;
}

type Built = Omit<Services, "dispatcher">;

/** A gateway as one thread has it: everything but the socket that it listens on. */
export class GatewayPart {
  readonly gateway: Gateway;
  readonly dispatcher: Dispatcher;
  readonly pools: Pools;
  readonly services: NodeServices;
  readonly #options: PartOptions;
  readonly #closeTracing: () => Promise<void>;
  /** Read by the dispatcher too, which is made before this. */
  readonly #running: { config: Config };

  private constructor(
    options: PartOptions,
    running: { config: Config },
    parts: Pick<GatewayPart, "gateway" | "dispatcher" | "pools" | "services">,
    closeTracing: () => Promise<void>,
  ) {
    this.#options = options;
    this.#running = running;
    this.gateway = parts.gateway;
    this.dispatcher = parts.dispatcher;
    this.pools = parts.pools;
    this.services = parts.services;
    this.#closeTracing = closeTracing;
  }

  /** Throws SluiceError for what keeps the configuration from being put in force. */
  static async open(options: PartOptions): Promise<GatewayPart> {
    const { config, environment, log } = options;
    const platform = createNodePlatform(options.clock);
    const services = new NodeServices(options);
    const built = await services.build(config);
    const share = options.share ?? alone(config.bounds.kvIndexBlocks);
    if (options.share === undefined) takeMemory(share.memory);
    const openBackend = backendOpener({ openHttp: openUndiciOrigin, env: (name) => environment[name] });
    const pools = new Pools({ openBackend, clock: platform.clock, random: Math.random, share });
    const running = { config };
    const dispatcher = createDispatcher({
      config,
      openBackend,
      clock: platform.clock,
      vocabularyHash: (model) => services.vocabularyHash(running.config, model),
      codec: (model) => services.tokenizer(running.config, model),
      pools,
      hooks: {
        onHedge: ({ pool, outcome }) => gateway.metrics.hedges.inc({ pool, outcome }),
        onShadow: ({ model, outcome }) => gateway.metrics.shadowed.inc({ model, outcome }),
      },
    });
    const { tracing, close } = await startTracing(config.telemetry.otlp, "sluice-gateway", environment);
    const gateway = new Gateway({
      platform,
      log,
      tracing,
      services: { ...built, dispatcher: seenBy(dispatcher, options) },
      gates: services.gates,
      expose: options.expose,
    });
    return new GatewayPart(options, running, { gateway, dispatcher, pools, services }, close);
  }

  get config(): Config {
    return this.#running.config;
  }

  /** Opens what `next` needs and changes nothing. */
  async build(next: Config): Promise<Built> {
    // What the running configuration does not name was left open for requests that had begun; they are long done.
    await this.services.retire(this.config);
    return await this.services.build(next);
  }

  /** Puts it in force; throws and changes nothing when a backend cannot be opened. */
  commit(next: Config, built: Built): void {
    this.dispatcher.reconfigure(next);
    this.#running.config = next;
    this.gateway.services = { ...built, dispatcher: seenBy(this.dispatcher, this.#options) };
  }

  async free(): Promise<void> {
    await this.dispatcher.close();
    await this.services.close();
    await this.#closeTracing();
  }
}

const seenBy = (dispatcher: Dispatcher, { ready }: PartOptions): Services["dispatcher"] =>
  ready === undefined ? dispatcher : { ...dispatcher, ready };

/** Serves a part; frees it when it cannot. */
export async function listenWith(part: GatewayPart, address: ListenAddress): Promise<Listening> {
  try {
    return await listen(part.gateway, createApp(part.gateway), address);
  } catch (error) {
    await part.free();
    throw error;
  }
}
