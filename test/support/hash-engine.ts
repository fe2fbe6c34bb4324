import { setImmediate, setTimeout } from "node:timers/promises";
import type { DaemonParts } from "../../src/backends/daemon/server.ts";
import type {
  Engine,
  EngineCallbacks,
  EngineEvent,
  EngineOptions,
  EngineRequest,
  KvDelta,
} from "../../src/engine/engine.ts";
import { chainKey, rootKey } from "../../src/gateway/prompt/blocks.ts";

/**
 * An engine without a model, for tests of what surrounds one: real queue, rows, mixed steps, prefix cache, block accounting
 * and KV events; the next token is a hash of the context, so that answers are repeatable and resumable.
 */
export interface HashEngineOptions {
  readonly vocabularySize?: number;
  readonly contextLength?: number;
  /** Time a step takes. */
  readonly stepMs?: number;
  /** KV deltas kept for late readers. */
  readonly ring?: number;
}

export interface HashEngine extends Engine {
  /** Engine ids cancelled so far, with the moment. */
  readonly cancelled: ReadonlyMap<number, number>;
  readonly submitted: readonly EngineRequest[];
  readonly grammarLoads: readonly string[];
  /** No further step runs until `resume`. */
  pause(): void;
  resume(): void;
  /** Resolves when `condition` holds; checked after every change. */
  until(condition: () => boolean): Promise<void>;
}

interface Row {
  readonly id: number;
  readonly request: EngineRequest;
  readonly context: number[];
  readonly promptLength: number;
  readonly expiresAt: number;
  readonly queuedAt: number;
  held: string[];
  leased: number;
  cached: number;
  computed: number;
  produced: number;
  startedAt: number;
  firstTokenAt: number;
  steps: number;
}

interface Block {
  readonly key: string;
  refs: number;
}

const blockSize = 16;

export function createHashEngine(
  options: EngineOptions,
  callbacks: EngineCallbacks,
  own: HashEngineOptions = {},
): HashEngine {
  const { vocabularySize = 1000, contextLength = 8192, stepMs = 0, ring = 256 } = own;
  const total = Math.floor(options.kvTokens / blockSize);
  const queue: Row[] = [];
  const rows = new Map<number, Row>();
  /** Insertion order is age: the first unreferenced block is the one to evict. */
  const blocks = new Map<string, Block & { parent: string | undefined; salt: string; tokenIds: number[] }>();
  const deltas: KvDelta[] = [];
  const cancelled = new Map<number, number>();
  const submitted: EngineRequest[] = [];
  const grammars: string[] = [];
  const waiters = new Set<() => void>();
  let leased = 0;
  let seq = 0;
  let nextId = 1;
  let paused = false;
  let draining = false;
  let closed = false;
  let running = false;
  let steps = 0;
  let generated = 0;
  let prefilled = 0;
  let lastProgressAt = performance.now();
  let stored: KvDelta["stored"][number][] = [];
  let removed: string[] = [];

  const changed = () => {
    for (const check of waiters) check();
  };
  const hex = (key: number) => key.toString(16).padStart(16, "0");
  const engineKeys = (ids: readonly number[], salt: string) => {
    const keys: string[] = [];
    let parent = rootKey(`engine:${salt}`);
    for (let start = 0; start + blockSize <= ids.length; start += blockSize) {
      parent = chainKey(parent, ids, start, start + blockSize);
      keys.push(hex(parent));
    }
    return keys;
  };
  const evict = (wanted: number): boolean => {
    for (const [key, block] of blocks) {
      if (total - blocks.size - leased >= wanted) return true;
      if (block.refs > 0) continue;
      blocks.delete(key);
      removed.push(key);
    }
    return total - blocks.size - leased >= wanted;
  };

  function admit(row: Row): boolean {
    const { request } = row;
    const keys = engineKeys(row.context.slice(0, -1), request.salt);
    const hits: string[] = [];
    for (const key of keys) {
      if (!blocks.has(key)) break;
      hits.push(key);
    }
    // Held before eviction, so that making room for the rest does not throw out the prefix itself.
    for (const key of hits) hold(key);
    const need = Math.ceil((row.context.length + request.maxNewTokens) / blockSize) - hits.length;
    if (!evict(need)) {
      for (const key of hits) release(key);
      return false;
    }
    leased += need;
    row.leased = need;
    row.held = hits;
    row.cached = hits.length * blockSize;
    row.computed = row.cached;
    row.startedAt = performance.now();
    rows.set(row.id, row);
    return true;
  }
  function hold(key: string): void {
    const block = blocks.get(key);
    if (block !== undefined) block.refs++;
  }
  function release(key: string): void {
    const block = blocks.get(key);
    if (block === undefined) return;
    block.refs--;
    // Used last = evicted last.
    blocks.delete(key);
    blocks.set(key, block);
  }

  /** Turns blocks of the lease that are full now into cached ones others can hit. */
  function publish(row: Row): void {
    const { salt } = row.request;
    for (let index = row.held.length; (index + 1) * blockSize <= row.computed; index++) {
      const parent = row.held[index - 1];
      const parentKey = parent === undefined ? rootKey(`engine:${salt}`) : Number.parseInt(parent, 16);
      const key = hex(chainKey(parentKey, row.context, index * blockSize, (index + 1) * blockSize));
      if (!blocks.has(key)) {
        const tokenIds = row.context.slice(index * blockSize, (index + 1) * blockSize);
        blocks.set(key, { key, parent, salt, tokenIds, refs: 0 });
        stored.push({ key, parent, salt, tokenIds });
      }
      hold(key);
      row.held.push(key);
      row.leased--;
      leased--;
    }
  }

  function retire(row: Row): void {
    rows.delete(row.id);
    for (const key of row.held) release(key);
    leased -= row.leased;
  }

  function nextToken(row: Row): number {
    const key = chainKey(
      row.request.sampling.seed,
      row.context,
      Math.max(0, row.context.length - 64),
      row.context.length,
    );
    return (key + row.context.length) % vocabularySize;
  }

  function advance(row: Row, budget: number, events: EngineEvent[]): number {
    row.steps++;
    const missing = row.context.length - row.computed;
    const chunk = Math.min(missing, Math.max(budget, 0));
    if (chunk === 0) return 0;
    row.computed += chunk;
    publish(row);
    if (row.produced === 0) prefilled += chunk;
    if (row.computed < row.context.length) {
      events.push({ type: "progress", id: row.id, prefilled: row.computed });
      return chunk;
    }
    const token = nextToken(row);
    if (row.produced === 0) row.firstTokenAt = performance.now();
    row.produced++;
    generated++;
    const stops = row.request.stopIds.includes(token);
    if (!stops) {
      row.context.push(token);
      const wanted = row.request.logprobs;
      const top = Array.from({ length: wanted ?? 0 }, (_, rank) => [rank, -0.123456789 - rank] as const);
      const logprobs = wanted === undefined ? undefined : [{ logprob: -0.123456789, top }];
      events.push({ type: "tokens", id: row.id, ids: [token], logprobs });
    }
    if (stops || row.produced >= row.request.maxNewTokens) finish(row, stops ? "stop" : "length", events);
    return chunk;
  }

  function finish(row: Row, reason: "stop" | "length", events: EngineEvent[]): void {
    retire(row);
    const now = performance.now();
    events.push({
      type: "finish",
      id: row.id,
      reason,
      usage: { promptTokens: row.promptLength, cachedTokens: row.cached, completionTokens: row.produced },
      timings: {
        queuedMs: row.startedAt - row.queuedAt,
        prefillMs: row.firstTokenAt - row.startedAt,
        decodeMs: now - row.firstTokenAt,
        steps: row.steps,
        maskMs: 0,
      },
    });
  }

  function step(): void {
    const events: EngineEvent[] = [];
    const now = performance.now();
    const expire = (row: Row) =>
      events.push({
        type: "error",
        id: row.id,
        code: "deadline_exceeded",
        message: "The deadline passed.",
        retryable: false,
      });
    for (const row of queue.filter((entry) => entry.expiresAt <= now)) {
      queue.splice(queue.indexOf(row), 1);
      expire(row);
    }
    for (const row of [...rows.values()].filter((entry) => entry.expiresAt <= now)) {
      retire(row);
      expire(row);
    }
    queue.sort((a, b) => b.request.priority - a.request.priority || a.id - b.id);
    for (let first = queue[0]; first !== undefined && rows.size < options.maxRows && admit(first); first = queue[0]) {
      queue.shift();
      events.push({ type: "accepted", id: first.id, cachedTokens: first.cached });
    }
    let budget = options.maxStepTokens;
    for (const row of [...rows.values()]) budget -= advance(row, budget, events);
    steps++;
    lastProgressAt = performance.now();
    if (stored.length + removed.length > 0) {
      seq++;
      deltas.push({ seq, stored, removed });
      if (deltas.length > ring) deltas.shift();
      stored = [];
      removed = [];
      callbacks.onKvChange?.();
    }
    if (events.length > 0) callbacks.onEvents(events);
    changed();
  }

  const hasWork = () => rows.size + queue.length > 0;
  async function loop(): Promise<void> {
    if (running) return;
    running = true;
    lastProgressAt = performance.now();
    while (hasWork() && !paused && !closed) {
      if (stepMs > 0) await setTimeout(stepMs);
      else await setImmediate();
      if (!paused && !closed) step();
    }
    running = false;
  }
  const until = (condition: () => boolean) =>
    new Promise<void>((resolve) => {
      const check = () => {
        if (!condition()) return;
        waiters.delete(check);
        resolve();
      };
      waiters.add(check);
      check();
    });
  const drop = (row: Row) => {
    const index = queue.indexOf(row);
    if (index >= 0) queue.splice(index, 1);
    else retire(row);
  };
  const find = (id: number) => rows.get(id) ?? queue.find((row) => row.id === id);

  return {
    info: {
      model: options.model,
      architecture: "hash",
      vocabularySize,
      contextLength,
      blockSize,
      kvTokens: total * blockSize,
      maxRows: options.maxRows,
      parameters: 0,
      weightBytes: 0,
    },
    submit(request) {
      if (draining) return { refused: "draining", message: "The engine is draining." };
      if (queue.length >= options.maxQueued) return { refused: "queue_full", message: "The queue is full." };
      const length = request.promptIds.length + request.generatedIds.length;
      if (length + request.maxNewTokens > contextLength) {
        return { refused: "prompt_too_long", message: `The context holds ${contextLength} tokens.` };
      }
      if (Math.ceil((length + request.maxNewTokens) / blockSize) > total) {
        return { refused: "kv_too_small", message: "The KV cache is too small for this request." };
      }
      if (request.grammar !== undefined && !grammars.includes(request.grammar)) {
        return { refused: "grammar_missing", message: "Unknown grammar." };
      }
      submitted.push(request);
      const now = performance.now();
      const id = nextId++;
      queue.push({
        id,
        request,
        context: [...request.promptIds, ...request.generatedIds],
        promptLength: request.promptIds.length,
        expiresAt: now + request.deadlineMs,
        queuedAt: now,
        held: [],
        leased: 0,
        cached: 0,
        computed: 0,
        produced: 0,
        startedAt: now,
        firstTokenAt: now,
        steps: 0,
      });
      changed();
      void loop();
      return { id };
    },
    cancel(id) {
      const row = find(id);
      if (row === undefined) return;
      drop(row);
      cancelled.set(id, performance.now());
      changed();
    },
    hasGrammar: (hash) => grammars.includes(hash),
    async loadGrammar(hash, bytes) {
      await setImmediate();
      if (bytes.length === 0) throw new Error("empty artifact");
      grammars.push(hash);
      changed();
    },
    kvEvents(after) {
      const oldest = deltas[0]?.seq ?? seq + 1;
      if (after > seq || after + 1 < oldest) return after === seq ? [] : undefined;
      return deltas.filter((delta) => delta.seq > after);
    },
    kvSnapshot() {
      const ordered: KvDelta["stored"][number][] = [];
      const seen = new Set<string>();
      const visit = (key: string) => {
        const block = blocks.get(key);
        if (block === undefined || seen.has(key)) return;
        if (block.parent !== undefined) visit(block.parent);
        seen.add(key);
        ordered.push({ key, parent: block.parent, salt: block.salt, tokenIds: block.tokenIds });
      };
      for (const key of blocks.keys()) visit(key);
      return { seq, stored: ordered, removed: [] };
    },
    stats() {
      const referenced = [...blocks.values()].filter((block) => block.refs > 0).length;
      const pending = [...queue, ...rows.values()].reduce(
        (sum, row) => sum + (row.produced > 0 ? 0 : row.context.length - row.computed),
        0,
      );
      return {
        runningRows: rows.size,
        queuedRows: queue.length,
        pendingPrefillTokens: pending,
        blocks: {
          total,
          free: total - blocks.size - leased,
          cached: blocks.size - referenced,
          leased: leased + referenced,
        },
        steps,
        generatedTokens: generated,
        prefilledTokens: prefilled,
        stepMsTotal: steps * stepMs,
        stepMsMax: stepMs,
        masks: { count: 0, totalMs: 0, maxMs: 0 },
        stalledMs: hasWork() ? performance.now() - lastProgressAt : 0,
        healthy: !closed,
      };
    },
    integrity() {
      const idle = !hasWork();
      const referenced = [...blocks.values()].reduce((sum, block) => sum + block.refs, 0);
      const ok = !idle || (leased === 0 && referenced === 0);
      return { ok, detail: `leased ${leased}, references ${referenced}` };
    },
    async drain(timeoutMs) {
      draining = true;
      const late = new AbortController();
      await Promise.race([
        until(() => !hasWork()),
        setTimeout(timeoutMs, undefined, { signal: late.signal }).catch(() => {}),
      ]);
      late.abort();
      for (const row of [...queue, ...rows.values()]) drop(row);
    },
    async close() {
      closed = true;
    },
    cancelled,
    submitted,
    grammarLoads: grammars,
    pause() {
      paused = true;
      lastProgressAt = performance.now();
    },
    resume() {
      paused = false;
      void loop();
    },
    until,
  };
}

/** Parts for `serveDaemon` with this engine; `engines` collects what was made. */
export function hashEngineParts(own: HashEngineOptions = {}, engines: HashEngine[] = []): DaemonParts {
  return {
    async createEngine(options, callbacks) {
      const engine = createHashEngine(options, callbacks, own);
      engines.push(engine);
      return engine;
    },
    async openVocabulary() {
      return { tokens: [], stopIds: [], vocabularyHash: "hash-engine", tokenizerFingerprint: "hash-engine" };
    },
  };
}
