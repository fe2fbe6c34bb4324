import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { invalidRequest } from "../errors.ts";
import type {
  CreateEngine,
  Engine,
  EngineCallbacks,
  EngineInfo,
  EngineOptions,
  EngineRefusal,
  EngineRequest,
  EngineStats,
  KvDelta,
} from "./engine.ts";
import { decodeEvents } from "./events.ts";

/** What native/src/napi/engine_addon.cc exports. */
interface Addon {
  createEngine(
    options: PackedOptions,
    onWords: (words: Uint32Array) => void,
    onProgress: (fraction: number) => void,
  ): Promise<Handle>;
}

interface Handle {
  info(): EngineInfo;
  submit(
    request: EngineRequest,
  ): number | { readonly refused: EngineRefusal | "invalid_request"; readonly message: string };
  cancel(id: number): void;
  hasGrammar(hash: string): boolean;
  loadGrammar(hash: string, bytes: Uint8Array): Promise<void>;
  kvEvents(seq: number): readonly KvDelta[] | undefined;
  kvSnapshot(): KvDelta;
  stats(): EngineStats;
  integrity(): { readonly ok: boolean; readonly detail: string };
  drain(timeoutMs: number): Promise<void>;
  close(): Promise<void>;
  /** Whether the engine's events keep the process alive. */
  ref(): void;
  unref(): void;
}

interface PackedOptions extends Omit<EngineOptions, "vocabulary"> {
  readonly vocabulary: { readonly bytes: Uint8Array; readonly ends: Uint32Array; readonly stopIds: Uint32Array };
}

const addonPath = fileURLToPath(new URL("../../native/build/sluice_engine.node", import.meta.url));

/**
 * Loads a model and starts its engine; rejects with a plain message when that fails (missing file, unknown architecture,
 * not enough memory). The process stays alive for running generations only.
 */
export const createEngine: CreateEngine = async (options, callbacks) => {
  const addon: Addon = createRequire(import.meta.url)(addonPath);
  const engine = new NativeEngine(callbacks);
  const handle = await addon.createEngine(
    { ...options, vocabulary: packVocabulary(options.vocabulary) },
    (words) => engine.receive(words),
    (fraction) => callbacks.onLoadProgress?.(fraction),
  );
  return engine.start(handle);
};

function packVocabulary({ tokens, stopIds }: EngineOptions["vocabulary"]): PackedOptions["vocabulary"] {
  const ends = new Uint32Array(tokens.length);
  let length = 0;
  for (const [id, token] of tokens.entries()) {
    length += token.length;
    ends[id] = length;
  }
  const bytes = new Uint8Array(length);
  for (const [id, token] of tokens.entries()) bytes.set(token, (ends[id] ?? 0) - token.length);
  return { bytes, ends, stopIds: Uint32Array.from(stopIds) };
}

class NativeEngine {
  readonly #callbacks: EngineCallbacks;
  /** Submitted, not ended, not cancelled: events of others are on their way from before a cancel and are dropped. */
  readonly #live = new Set<number>();
  #handle: Handle | undefined;
  #closed: Promise<void> | undefined;

  constructor(callbacks: EngineCallbacks) {
    this.#callbacks = callbacks;
  }

  start(handle: Handle): Engine {
    this.#handle = handle;
    return {
      info: handle.info(),
      submit: (request) => this.#submit(handle, request),
      cancel: (id) => {
        if (this.#forget(id)) handle.cancel(id);
      },
      hasGrammar: (hash) => handle.hasGrammar(hash),
      loadGrammar: (hash, bytes) => handle.loadGrammar(hash, bytes),
      kvEvents: (seq) => handle.kvEvents(seq),
      kvSnapshot: () => handle.kvSnapshot(),
      stats: () => handle.stats(),
      integrity: () => handle.integrity(),
      drain: (timeoutMs) => handle.drain(timeoutMs),
      close: () => {
        this.#closed ??= handle.close();
        return this.#closed;
      },
    };
  }

  receive(words: Uint32Array): void {
    const { events, kvChanged } = decodeEvents(words);
    const wanted = events.filter(({ id }) => this.#live.has(id));
    for (const event of wanted) if (event.type === "finish" || event.type === "error") this.#forget(event.id);
    if (wanted.length > 0) this.#callbacks.onEvents(wanted);
    if (kvChanged) this.#callbacks.onKvChange?.();
  }

  #submit(handle: Handle, request: EngineRequest): ReturnType<Engine["submit"]> {
    const result = handle.submit(request);
    if (typeof result === "number") {
      if (this.#live.size === 0) handle.ref();
      this.#live.add(result);
      return { id: result };
    }
    if (result.refused === "invalid_request") throw invalidRequest("invalid_request", result.message);
    return { refused: result.refused, message: result.message };
  }

  #forget(id: number): boolean {
    if (!this.#live.delete(id)) return false;
    if (this.#live.size === 0) this.#handle?.unref();
    return true;
  }
}
