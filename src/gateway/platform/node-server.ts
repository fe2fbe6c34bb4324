import { createServer, type Server } from "node:http";
import type { AddressInfo, Server as NetServer } from "node:net";
import { getRequestListener } from "@hono/node-server";
import type { Hono } from "hono";
import { SluiceError, unavailable } from "../../errors.ts";
import type { Gateway } from "../gateway.ts";
import type { Clock } from "../../clock.ts";

export interface Listening {
  readonly url: string;
  readonly port: number;
  /**
   * Stops taking requests, lets open answers finish for up to `graceMs`, then ends them with an in-band error. Resolves
   * when every connection is closed.
   */
  close(graceMs: number): Promise<void>;
}

/** Longer than the idle limit of the usual load balancers (60 s), so that they close first and never meet a closed one. */
const keepAliveTimeout = 75_000;
/** Answers cut off by the grace period still have to reach their callers. */
const farewellMs = 1_000;

export interface ListenAddress {
  readonly host: string;
  /** 0 takes any free one. */
  readonly port: number;
  /** Several threads listen there, and the system shares new connections out among them. */
  readonly reusePort?: boolean;
}

/** Serves the app. Throws SluiceError `cannot_listen`, or `cannot_share_port` where the system has no `reusePort`. */
export async function listen(gateway: Gateway, app: Hono, address: ListenAddress): Promise<Listening> {
  const listener = getRequestListener(app.fetch);
  const server = createServer({ noDelay: true, requestTimeout: 60_000, keepAliveTimeout }, (incoming, outgoing) => {
    // A kept-alive connection would otherwise outlive the listening socket and bring new requests.
    if (gateway.draining) outgoing.setHeader("connection", "close");
    void listener(incoming, outgoing);
  });
  await started(server, address);
  const bound = server.address() as AddressInfo;
  const shown = bound.family === "IPv6" ? `[${bound.address}]` : bound.address;
  let closing: Promise<void> | undefined;
  return {
    url: `http://${shown}:${bound.port}`,
    port: bound.port,
    close: (graceMs) => {
      closing ??= drain(gateway, server, graceMs);
      return closing;
    },
  };
}

/** Resolves when it listens. Throws as `listen` does. */
export function started(server: NetServer, { host, port, reusePort = false }: ListenAddress): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", (cause: NodeJS.ErrnoException) => {
      const unshared = reusePort && cause.code === "ENOTSUP";
      const why = cause.code === "EADDRINUSE" ? "the port is taken" : (cause.code ?? "unknown reason");
      reject(
        new SluiceError({
          status: 500,
          type: "server_error",
          code: cause.code === "EADDRINUSE" ? "port_taken" : unshared ? "cannot_share_port" : "cannot_listen",
          message: `Cannot listen on ${host}:${port}: ${why}.`,
          cause,
        }),
      );
    });
    server.listen({ port, host, reusePort }, resolve);
  });
}

async function drain(gateway: Gateway, server: Server, graceMs: number): Promise<void> {
  const { clock } = gateway.platform;
  gateway.draining = true;
  const closed = new Promise<void>((resolve) => server.close(() => resolve()));
  server.closeIdleConnections();
  await within(clock, graceMs, gateway.idle());
  gateway.shutdown.abort(unavailable("shutting_down", "The gateway shut down before the answer was complete."));
  await within(clock, farewellMs, gateway.idle());
  gateway.heartbeat.close();
  server.closeIdleConnections();
  // What is idle now has been told everything; what is not gets a moment to read the end of its answer.
  await within(clock, farewellMs, closed);
  server.closeAllConnections();
  await closed;
}

/** Waits for `work`, but no longer than `ms`. */
async function within(clock: Clock, ms: number, work: Promise<void>): Promise<void> {
  const timer = new AbortController();
  const late = clock.sleep(ms, timer.signal).catch(() => {});
  await Promise.race([work, late]);
  timer.abort();
}
