import { Worker } from "node:worker_threads";
import type { Clock } from "../../../clock.ts";
import type { Config } from "../../../config/schema.ts";
import { asSluiceError, type SluiceError, unavailable } from "../../../errors.ts";
import type { GrammarCompiler, GrammarSource } from "../../../grammar/grammar.ts";
import type { Logger } from "../../../telemetry/logs.ts";
import { addedUp, type Counted, expositionOf, withoutGauges } from "../../../telemetry/metrics.ts";
import { forgetThread, type Seen } from "../../routing/share.ts";
import { causeOf } from "../../settle.ts";
import { forgetGatesOf } from "../../tenants/gate-memory.ts";
import { Readiness, type SharedMemory } from "./memory.ts";
import { type FromThread, heard, type ThreadStart, type ToThread, tell } from "./messages.ts";

export interface CrewOptions {
  readonly memory: SharedMemory;
  readonly clock: Clock;
  readonly log: Logger;
  /** Takes the lines that threads log. */
  readonly write: (line: string) => void;
  /** With what a thread begins now. */
  readonly begin: () => Omit<ThreadStart, "thread" | "memory">;
  /** The compiler that goes by a key. */
  readonly grammars: (key: string) => GrammarCompiler | undefined;
  /** What the main thread itself has counted. */
  readonly counted: () => Promise<Counted>;
  /** A thread found a backend failing. */
  readonly onSuspect: (backend: string) => void;
  /** Slots given out so far. */
  readonly given: () => { readonly tenants: number; readonly backends: number };
}

interface Mate {
  readonly thread: number;
  readonly worker: Worker;
  readonly listening: PromiseWithResolvers<void>;
  readonly ready: PromiseWithResolvers<void>;
  readonly gone: PromiseWithResolvers<void>;
  drained: () => void;
  /** Why it ended, if it said so. */
  reason: unknown;
  built: PromiseWithResolvers<void> | undefined;
  committed: PromiseWithResolvers<void> | undefined;
  counting: PromiseWithResolvers<Counted> | undefined;
  /** What it last said, for when it does not answer. */
  counted: Counted;
  /** Compilations that it waits for. */
  readonly compiling: Map<number, AbortController>;
}

const countWithinMs = 1_000;
/** Beyond the grace period: a thread needs two seconds for its farewells, and a process has three. */
const drainBeyondMs = 2_500;
const firstRestartMs = 250;
const slowestRestartMs = 10_000;
/** Deaths further apart than this have nothing to do with each other. */
const calmMs = 60_000;

/**
 * A gateway's further threads, as the main thread sees them: starts them, keeps them at the same configuration and the same
 * view of the backends, compiles and adds up for them, replaces one that dies, and ends them.
 */
export class Crew {
  readonly #options: CrewOptions;
  readonly #ready: Readiness;
  readonly #mates = new Map<number, Mate>();
  readonly #closing = new AbortController();
  /** Of threads that have died: their counters, so that sums never fall. */
  #departed: Promise<Counted> = Promise.resolve([]);

  constructor(options: CrewOptions) {
    this.#options = options;
    this.#ready = new Readiness(options.memory);
  }

  /** Resolves when all threads listen. Throws what keeps one from it; none is left then. */
  async start(): Promise<void> {
    const { threads } = this.#options.memory;
    const mates = Array.from({ length: threads - 1 }, (_, index) => this.#open(index + 1));
    try {
      await Promise.all(mates.map(({ listening }) => listening.promise));
    } catch (error) {
      await this.close(0);
      throw error;
    }
    for (const mate of mates) void this.#keep(mate);
  }

  /** Resolves when every thread has had a backend for every model. */
  async untilReady(): Promise<void> {
    await Promise.all([...this.#mates.values()].map((mate) => unlessGone(mate, mate.ready.promise)));
  }

  /** Every thread opens what `config` needs. Throws what the first one says that cannot; then none of them has changed. */
  async build(config: Config): Promise<void> {
    const { tenants } = this.#options.begin();
    const building = [...this.#mates.values()].map((mate) => {
      mate.built = Promise.withResolvers();
      post(mate, { type: "build", config, tenants });
      return unlessGone(mate, mate.built.promise);
    });
    const results = await Promise.allSettled(building);
    const failed = results.find((result) => result.status === "rejected");
    if (failed === undefined) return;
    this.abandon();
    throw failed.reason;
  }

  abandon(): void {
    this.#tell({ type: "abandon" });
  }

  /** Puts what was built in force, with the slots that the main thread has given out for it; resolves when it is, everywhere. */
  async commit(config: Config): Promise<void> {
    const { slots, tenants } = this.#options.begin();
    const committing = [...this.#mates.values()].map((mate) => {
      mate.committed = Promise.withResolvers();
      post(mate, { type: "commit", config, tenants, slots });
      return unlessGone(mate, mate.committed.promise);
    });
    await Promise.all(committing);
  }

  seen(backend: string, seen: Seen): void {
    this.#tell({ type: "seen", backend, seen });
  }

  /** The metrics of the whole process. */
  async expose(): Promise<string> {
    // Taken before the others are asked: one that dies meanwhile is counted as itself, not once more among these.
    const departed = this.#departed;
    const threads = [...this.#mates.values()].map((mate) => this.#count(mate));
    return await expositionOf([await this.#options.counted(), ...(await Promise.all(threads)), await departed]);
  }

  /** Drains all threads at once and ends them; one that does not come to its end is ended. */
  async close(graceMs: number): Promise<void> {
    this.#closing.abort();
    const { clock } = this.#options;
    await Promise.all(
      [...this.#mates.values()].map(async (mate) => {
        const drained = Promise.withResolvers<void>();
        mate.drained = drained.resolve;
        post(mate, { type: "drain", graceMs });
        const late = new AbortController();
        const bound = clock.sleep(graceMs + drainBeyondMs, late.signal).catch(() => {});
        await Promise.race([drained.promise, mate.gone.promise, bound]);
        late.abort();
        await mate.worker.terminate();
      }),
    );
  }

  #tell(message: ToThread): void {
    for (const mate of this.#mates.values()) post(mate, message);
  }

  #open(thread: number): Mate {
    const { memory, begin } = this.#options;
    const worker = new Worker(new URL("./entry.ts", import.meta.url), {
      name: `gateway ${thread}`,
      workerData: { ...begin(), thread, memory } satisfies ThreadStart,
      execArgv: ["--disable-warning=ExperimentalWarning"],
    });
    const mate: Mate = {
      thread,
      worker,
      listening: Promise.withResolvers(),
      ready: Promise.withResolvers(),
      gone: Promise.withResolvers(),
      drained: () => {},
      reason: undefined,
      built: undefined,
      committed: undefined,
      counting: undefined,
      counted: [],
      compiling: new Map(),
    };
    mate.listening.promise.catch(() => {});
    this.#mates.set(thread, mate);
    worker.on("message", (message: FromThread) => this.#hear(mate, message));
    worker.on("error", (error) => {
      mate.reason = error;
    });
    worker.on("exit", () => this.#lost(mate));
    return mate;
  }

  #hear(mate: Mate, message: FromThread): void {
    switch (message.type) {
      case "listening":
        mate.listening.resolve();
        break;
      case "failed":
        mate.reason = heard(message.error);
        void mate.worker.terminate();
        break;
      case "ready":
        mate.ready.resolve();
        break;
      case "built":
        if (message.error === undefined) mate.built?.resolve();
        else mate.built?.reject(heard(message.error));
        break;
      case "committed":
        mate.committed?.resolve();
        break;
      case "suspect":
        this.#options.onSuspect(message.backend);
        break;
      case "compile":
        void this.#compile(mate, message);
        break;
      case "leave":
        mate.compiling.get(message.id)?.abort(nobodyWaits());
        break;
      case "counted":
        mate.counted = message.counted;
        mate.counting?.resolve(message.counted);
        break;
      case "expose":
        void this.expose().then((text) => post(mate, { type: "exposed", id: message.id, text }));
        break;
      case "log":
        for (const line of message.lines) this.#options.write(line);
        break;
      case "drained":
        mate.drained();
    }
  }

  async #compile(mate: Mate, { id, key, source }: Extract<FromThread, { type: "compile" }>): Promise<void> {
    const waiting = new AbortController();
    mate.compiling.set(id, waiting);
    try {
      const grammars = this.#options.grammars(key);
      if (grammars === undefined)
        throw unavailable("grammar_compiler_closed", "The grammar compiler is shutting down.");
      const artifact = await grammars.compile(JSON.parse(source) as GrammarSource, waiting.signal);
      post(mate, { type: "compiled", id, artifact });
    } catch (error) {
      post(mate, { type: "refused", id, error: tell(asSluiceError(error)) });
    } finally {
      mate.compiling.delete(id);
    }
  }

  /** What a thread has counted; what it last said where it does not answer in time. */
  async #count(mate: Mate): Promise<Counted> {
    if (mate.counting === undefined) {
      mate.counting = Promise.withResolvers();
      post(mate, { type: "count" });
    }
    const asked = mate.counting;
    const late = new AbortController();
    const last = () => mate.counted;
    const bound = this.#options.clock.sleep(countWithinMs, late.signal).then(last, last);
    const counted = await Promise.race([
      asked.promise,
      bound,
      mate.gone.promise.then(() => withoutGauges(mate.counted)),
    ]);
    late.abort();
    if (mate.counting === asked) mate.counting = undefined;
    return counted;
  }

  /** It is gone with all that it had open; what it held in common tables is given back. */
  #lost(mate: Mate): void {
    const { memory, given } = this.#options;
    const { thread, reason } = mate;
    const { tenants, backends } = given();
    this.#ready.set(thread, "absent");
    forgetThread(memory.routing, thread, backends);
    forgetGatesOf(thread, memory.gates, tenants);
    for (const waiting of mate.compiling.values()) waiting.abort(nobodyWaits());
    this.#departed = this.#departed.then((others) => addedUp([others, withoutGauges(mate.counted)]));
    if (this.#mates.get(thread) === mate) this.#mates.delete(thread);
    mate.listening.reject(reason ?? ended(thread));
    mate.gone.resolve();
    if (!this.#closing.signal.aborted) {
      this.#options.log.error("thread_died", { thread, cause: causeOf(reason) });
    }
  }

  /** Replaces a thread whenever it dies, sooner at first, until the gateway closes. */
  async #keep(first: Mate): Promise<void> {
    const { clock, log } = this.#options;
    let mate = first;
    let deaths = 0;
    for (;;) {
      const since = clock.now();
      await mate.gone.promise;
      if (clock.now() - since > calmMs) deaths = 0;
      const wait = Math.min(slowestRestartMs, firstRestartMs * 2 ** deaths++);
      await clock.sleep(wait, this.#closing.signal).catch(() => {});
      if (this.#closing.signal.aborted) return;
      mate = this.#open(first.thread);
      await mate.listening.promise.then(
        () => log.info("thread_replaced", { thread: mate.thread }),
        () => {},
      );
    }
  }
}

/** One that dies meanwhile begins anew, with what is in force then. */
const unlessGone = ({ gone }: Mate, work: Promise<void>): Promise<void> => Promise.race([work, gone.promise]);

const post = ({ worker }: Mate, message: ToThread): void => worker.postMessage(message);

const nobodyWaits = (): SluiceError => unavailable("left", "Nobody waits for it any more.");

const ended = (thread: number): SluiceError =>
  unavailable("thread_ended", `Thread ${thread} of the gateway ended before it listened.`);
