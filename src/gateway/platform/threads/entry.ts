import { type MessagePort, parentPort, workerData } from "node:worker_threads";
import { asSluiceError, SluiceError } from "../../../errors.ts";
import type { GrammarArtifact } from "../../../grammar/grammar.ts";
import { createLogger } from "../../../telemetry/logs.ts";
import { openTokenizer } from "../../../tokenizer/node.ts";
import { Slots } from "../../routing/slots.ts";
import { TenantGate } from "../../tenants/gate.ts";
import { GateBell } from "../../tenants/gate-memory.ts";
import { nodeClock } from "../node-exchange.ts";
import { GatewayPart, listenWith } from "../node-part.ts";
import type { PlatformClock } from "../platform.ts";
import { createRemoteGrammars } from "./grammars.ts";
import { Readiness } from "./memory.ts";
import { type FromThread, type GivenSlots, heard, type ThreadStart, type ToThread, tell } from "./messages.ts";

/** One of a gateway's further threads: the whole way of a request, on a socket of its own at the common port. */
async function run(start: ThreadStart, port: MessagePort): Promise<void> {
  const { thread, memory, environment } = start;
  const post = (message: FromThread): void => port.postMessage(message);
  const ready = new Readiness(memory);
  const compilations = new Questions<GrammarArtifact>();
  const expositions = new Questions<string>();
  const log = bufferedLog(post);
  const tenants = new Map(start.tenants);
  const backends = new Slots({ given: true });
  const pools = new Slots({ given: true });
  const assume = (slots: GivenSlots): void => {
    backends.assume(slots.backends);
    pools.assume(slots.pools);
  };
  assume(start.slots);
  const bell = new GateBell(memory.gates, thread);
  const clock = commonClock(start.clockZero);

  let part: GatewayPart | undefined;
  part = await GatewayPart.open({
    config: start.config,
    environment,
    clock,
    log: createLogger({
      write: log.write,
      wall: clock.wall,
      content: start.config.telemetry.content,
      fields: { thread },
    }),
    saltKey: start.saltKey,
    parts: {
      openTokenizer: (reference) => openTokenizer(reference),
      openGrammars: (_, { bounds }, key) =>
        createRemoteGrammars({
          ask: (source, signal) =>
            compilations.ask(
              (id) => post({ type: "compile", id, key, source }),
              signal,
              (id) => post({ type: "leave", id }),
            ),
          cacheBytes: bounds.grammarCacheBytes / memory.threads,
        }),
    },
    openGate(tenant) {
      const slot = tenants.get(tenant);
      if (slot === undefined) throw new RangeError("a tenant has no slot");
      return new TenantGate({ memory: memory.gates, thread, slot, bell });
    },
    share: {
      memory: memory.routing,
      thread,
      backends,
      pools,
      onSuspect: (backend) => post({ type: "suspect", backend }),
      onChange: () => ready.set(thread, part?.dispatcher.ready() === true ? "ready" : "waiting"),
    },
    ready: () => ready.everywhere,
    expose: () => expositions.ask((id) => post({ type: "expose", id })),
  });
  const running = part;
  ready.set(thread, "waiting");
  for (const [backend, seen] of start.seen) running.pools.told(backend, seen);
  const listening = await listenWith(running, { host: start.host, port: start.port, reusePort: true });
  const stopped = new AbortController();
  running.dispatcher.untilReady(stopped.signal).then(
    () => post({ type: "ready" }),
    () => {},
  );

  let built: ReturnType<GatewayPart["build"]> | undefined;
  async function follow(message: ToThread): Promise<void> {
    switch (message.type) {
      case "build":
        for (const [name, slot] of message.tenants) tenants.set(name, slot);
        built = running.build(message.config);
        await built.then(
          () => post({ type: "built", error: undefined }),
          (error: unknown) => post({ type: "built", error: tell(asSluiceError(error)) }),
        );
        return;
      case "abandon":
        built = undefined;
        return;
      case "commit": {
        for (const [name, slot] of message.tenants) tenants.set(name, slot);
        // Started between the two, this thread was not told to build it.
        const services = await (built ?? running.build(message.config));
        built = undefined;
        assume(message.slots);
        running.commit(message.config, services);
        post({ type: "committed" });
        return;
      }
      case "seen":
        running.pools.told(message.backend, message.seen);
        return;
      case "compiled":
        compilations.answer(message.id, message.artifact);
        return;
      case "refused":
        compilations.fail(message.id, heard(message.error));
        return;
      case "exposed":
        expositions.answer(message.id, message.text);
        return;
      case "count":
        post({ type: "counted", counted: await running.gateway.counted() });
        return;
      case "drain":
        await listening.close(message.graceMs);
        stopped.abort();
        await running.free();
        log.flush();
        post({ type: "drained" });
    }
  }
  // A configuration and what is seen of its backends come one after another; answers and the end wait for nothing.
  let last: Promise<void> = Promise.resolve();
  const inOrder = new Set<ToThread["type"]>(["build", "abandon", "commit", "seen"]);
  port.on("message", (message: ToThread) => {
    // What fails here is no request's fault: the thread ends with it, and the main thread starts another.
    if (inOrder.has(message.type)) last = last.then(() => follow(message));
    else void follow(message);
  });
  post({ type: "listening" });
}

/** Questions to the main thread that wait for their answer. */
class Questions<Answer> {
  readonly #open = new Map<number, PromiseWithResolvers<Answer>>();
  #next = 0;

  ask(send: (id: number) => void, signal?: AbortSignal, leave: (id: number) => void = () => {}): Promise<Answer> {
    const id = this.#next++;
    const asked = Promise.withResolvers<Answer>();
    this.#open.set(id, asked);
    send(id);
    const left = (): void => {
      leave(id);
      this.fail(id, signal?.reason);
    };
    signal?.addEventListener("abort", left, { once: true });
    return asked.promise.finally(() => signal?.removeEventListener("abort", left));
  }

  answer(id: number, answer: Answer): void {
    this.#open.get(id)?.resolve(answer);
    this.#open.delete(id);
  }

  fail(id: number, error: unknown): void {
    this.#open.get(id)?.reject(error);
    this.#open.delete(id);
  }
}

/** All lines of one turn in one message. */
function bufferedLog(post: (message: FromThread) => void) {
  let lines: string[] = [];
  const flush = (): void => {
    if (lines.length > 0) post({ type: "log", lines });
    lines = [];
  };
  return {
    flush,
    write(line: string): void {
      if (lines.length === 0) setImmediate(flush);
      lines.push(line);
    },
  };
}

/** The main thread's: each thread's own begins with the thread, and moments in shared tables must mean the same to all. */
function commonClock(zero: number): PlatformClock {
  const ahead = Number(process.hrtime.bigint()) / 1e6 - performance.now() - zero;
  return { ...nodeClock, now: () => performance.now() + ahead };
}

if (parentPort === null) throw new Error("this file is a thread of a gateway");
const port = parentPort;
run(workerData as ThreadStart, port).catch((error: unknown) => {
  // Anything else is a fault of the program; uncaught it reaches the main thread with its stack.
  if (!(error instanceof SluiceError)) throw error;
  port.postMessage({ type: "failed", error: tell(error) } satisfies FromThread);
});
