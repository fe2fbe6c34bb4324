import { LRUCache } from "lru-cache";
import { invalidRequest, SluiceError, unavailable } from "../errors.ts";
import type { Vocabulary } from "../tokenizer/vocabulary.ts";
import { DEFAULT_SCHEMA_BUDGET, type SchemaBudget } from "./budget.ts";
import type { FromChild } from "./child-protocol.ts";
import { CompileWorker, failureError, type StartMessage, WorkerFailure } from "./compile-worker.ts";
import type { GrammarArtifact, GrammarCompiler, GrammarPolicy, GrammarSource } from "./grammar.ts";
import { DEFAULT_POLICY } from "./policy.ts";
import { paramOf, sourceKey } from "./source.ts";
import { grammarVocabulary } from "./vocabulary.ts";

export interface GrammarCompilerOptions {
  readonly vocabulary: Vocabulary;
  readonly policy?: GrammarPolicy;
  readonly budget?: Partial<SchemaBudget>;
  /** Processor time for one compilation, milliseconds; the child ends when it is over. Default 5000. */
  readonly cpuMs?: number;
  /** Resident memory of one child. Default 1 GiB. */
  readonly memoryBytes?: number;
  /** Artifacts kept. Default 256 MiB. */
  readonly cacheBytes?: number;
  /** Compilations that may wait; more are a 503. Default 64. */
  readonly maxQueued?: number;
  /** Children at most, started as they are needed: a slow schema leaves the other to the rest. Default 2. */
  readonly children?: number;
}

interface Job {
  readonly source: GrammarSource;
  readonly key: string;
  readonly done: PromiseWithResolvers<GrammarArtifact>;
  /** Callers that still wait. A job nobody waits for is not begun. */
  waiting: number;
}

const KNOWN_SOURCES = 10_000;
/** A child that has not used its processor time after this many times as long by the clock hangs, or the machine does. */
const CLOCK_FACTOR = 12;

/**
 * The XGrammar compiler behind cache, single-flight, and compile children. `compile` throws a 400 SluiceError with path and
 * keyword for what cannot be guaranteed, 400 `schema_too_complex` for what passes a budget, 503 `grammar_queue_full`.
 */
export function createGrammarCompiler(options: GrammarCompilerOptions): GrammarCompiler {
  return new XGrammarCompiler(options);
}

class XGrammarCompiler implements GrammarCompiler {
  private readonly cpuMs: number;
  private readonly timeoutMs: number;
  private readonly maxQueued: number;
  private readonly children: number;
  private readonly start: StartMessage;
  private readonly artifacts: LRUCache<string, GrammarArtifact>;
  /** What a source's text is known to lead to: an artifact's hash, or a refusal that will not change. */
  private readonly known = new LRUCache<string, { readonly hash: string } | { readonly refused: SluiceError }>({
    max: KNOWN_SOURCES,
  });
  private readonly jobs = new Map<string, Job>();
  private readonly queue: Job[] = [];
  /** Compilations under way, by artifact hash: differently written but equal sources meet here. */
  private readonly compiling = new Map<string, Promise<GrammarArtifact>>();
  private readonly idle: CompileWorker[] = [];
  private readonly busy = new Set<CompileWorker>();
  private closed = false;

  constructor(options: GrammarCompilerOptions) {
    const policy = options.policy ?? DEFAULT_POLICY;
    if (policy.propertyOrder !== "schema") {
      throw new SluiceError({
        status: 500,
        type: "server_error",
        code: "unsupported_policy",
        message: "The xgrammar engine writes members in the schema's order only: set grammar.propertyOrder to schema.",
      });
    }
    this.cpuMs = options.cpuMs ?? 5_000;
    this.timeoutMs = this.cpuMs * CLOCK_FACTOR;
    this.maxQueued = options.maxQueued ?? 64;
    this.children = options.children ?? 2;
    const { bytes, ends, stopIds, hash } = grammarVocabulary(options.vocabulary);
    this.start = {
      type: "start",
      bytes,
      ends,
      stopIds,
      vocabularyHash: hash,
      policy,
      budget: { ...DEFAULT_SCHEMA_BUDGET, ...options.budget },
      memoryBytes: options.memoryBytes ?? 1024 ** 3,
      cpuMs: this.cpuMs,
    };
    this.artifacts = new LRUCache({
      maxSize: options.cacheBytes ?? 256 * 1024 ** 2,
      sizeCalculation: (artifact) => artifact.bytes.byteLength + 256,
    });
  }

  async compile(source: GrammarSource, signal: AbortSignal): Promise<GrammarArtifact> {
    signal.throwIfAborted();
    if (this.closed) throw unavailable("grammar_compiler_closed", "The grammar compiler is shutting down.");
    const key = sourceKey(source, this.start.budget.bytes * 4);
    const known = this.known.get(key);
    if (known !== undefined) {
      if ("refused" in known) throw known.refused;
      const artifact = this.artifacts.get(known.hash);
      if (artifact !== undefined) return artifact;
    }
    const job = this.jobs.get(key) ?? this.enqueue(key, source);
    return this.wait(job, signal);
  }

  async close(): Promise<void> {
    this.closed = true;
    const error = unavailable("grammar_compiler_closed", "The grammar compiler is shutting down.");
    for (const job of this.queue.splice(0)) job.done.reject(error);
    for (const worker of [...this.idle, ...this.busy]) worker.kill();
  }

  private enqueue(key: string, source: GrammarSource): Job {
    if (this.queue.length >= this.maxQueued) {
      throw unavailable("grammar_queue_full", "Too many grammars are waiting to be compiled.", {
        retryAfterMs: this.cpuMs,
      });
    }
    const job: Job = { source, key, done: Promise.withResolvers<GrammarArtifact>(), waiting: 0 };
    // A job may fail after its last caller has left.
    job.done.promise.catch(() => undefined);
    this.jobs.set(key, job);
    this.queue.push(job);
    this.next();
    return job;
  }

  private async wait(job: Job, signal: AbortSignal): Promise<GrammarArtifact> {
    job.waiting++;
    const aborted = Promise.withResolvers<never>();
    const onAbort = () => aborted.reject(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      return await Promise.race([job.done.promise, aborted.promise]);
    } finally {
      signal.removeEventListener("abort", onAbort);
      job.waiting--;
      const place = job.waiting === 0 ? this.queue.indexOf(job) : -1;
      if (place >= 0) {
        this.queue.splice(place, 1);
        this.jobs.delete(job.key);
      }
    }
  }

  /** Gives waiting jobs to children that have none. */
  private next(): void {
    while (this.queue.length > 0) {
      const worker = this.idle.pop() ?? (this.busy.size < this.children ? new CompileWorker(this.start) : undefined);
      if (worker === undefined) return;
      const job = this.queue.shift();
      if (job === undefined) return;
      this.busy.add(worker);
      void this.run(worker, job);
    }
  }

  private async run(worker: CompileWorker, job: Job): Promise<void> {
    try {
      job.done.resolve(await this.work(worker, job));
    } catch (error) {
      if (error instanceof WorkerFailure) job.done.reject(failureError(error.fault, this.cpuMs, paramOf(job.source)));
      else {
        // A refusal is the source's own fault and stays; a lack of time or memory is not remembered.
        if (error instanceof SluiceError && error.status === 400) this.known.set(job.key, { refused: error });
        job.done.reject(error);
      }
    } finally {
      this.jobs.delete(job.key);
      this.busy.delete(worker);
      if (this.closed) worker.kill();
      else {
        this.idle.push(worker);
        this.next();
      }
    }
  }

  private async work(worker: CompileWorker, job: Job): Promise<GrammarArtifact> {
    const begun = performance.now();
    const prepared = await worker.ask({ type: "prepare", source: job.source }, this.timeoutMs);
    const { hash } = expected(prepared, "prepared", job.source);
    const cached = this.artifacts.get(hash) ?? (await this.compiling.get(hash)?.catch(() => undefined));
    const artifact = cached ?? (await this.build(worker, job, hash, this.timeoutMs - (performance.now() - begun)));
    this.known.set(job.key, { hash });
    return artifact;
  }

  private async build(worker: CompileWorker, job: Job, hash: string, timeLeft: number): Promise<GrammarArtifact> {
    const building = (async (): Promise<GrammarArtifact> => {
      const compiled = await worker.ask({ type: "compile" }, Math.max(1, timeLeft));
      const { bytes } = expected(compiled, "compiled", job.source);
      const artifact: GrammarArtifact = { hash, engine: "xgrammar", bytes };
      this.artifacts.set(hash, artifact);
      return artifact;
    })();
    this.compiling.set(hash, building);
    try {
      return await building;
    } finally {
      this.compiling.delete(hash);
    }
  }
}

/** The answer of this type, or the refusal that came instead as the caller's error. */
function expected<T extends FromChild["type"]>(
  answer: FromChild,
  type: T,
  source: GrammarSource,
): Extract<FromChild, { type: T }> {
  if (answer.type === "refused") throw invalidRequest(answer.code, answer.message, answer.param ?? paramOf(source));
  if (!hasType(answer, type)) throw new WorkerFailure("crash");
  return answer;
}

function hasType<T extends FromChild["type"]>(answer: FromChild, type: T): answer is Extract<FromChild, { type: T }> {
  return answer.type === type;
}
