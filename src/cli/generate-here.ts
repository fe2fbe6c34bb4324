import { greedy } from "../backends/backend.ts";
import { createEngine } from "../engine/create.ts";
import type { Engine, EngineEvent } from "../engine/engine.ts";
import { createGrammarCompiler } from "../grammar/compiler.ts";
import { grammarTokenBytes } from "../grammar/vocabulary.ts";
import { openTokenizer } from "../tokenizer/node.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { CommandError } from "./exit.ts";
import type { Generation, GenerationResult } from "./generate.ts";
import { bringModel } from "./models.ts";
import type { EngineFlags } from "./options.ts";
import { progress } from "./output.ts";
import { tokenizerReference } from "./supervisor/plan.ts";

/**
 * The whole way inside this process: template, tokens, grammar, engine, text. Nothing listens anywhere.
 * Throws SluiceError and CommandError with messages for a terminal, or the signal's reason.
 */
export async function generateHere(
  request: Generation,
  flags: EngineFlags & { readonly threads: number },
  write: (text: string) => void,
  signal: AbortSignal,
): Promise<GenerationResult> {
  const path = await bringModel(request.model, signal);
  const tokenizer = await openTokenizer(tokenizerReference(path));
  const events = new EventQueue();
  const bar = progress("loading the model");
  const { vocabulary } = tokenizer;
  const engine = await createEngine(
    {
      model: path,
      precision: flags.precision,
      threads: flags.threads,
      kvTokens: flags.kvTokens,
      maxRows: 1,
      maxStepTokens: 512,
      maxQueued: 1,
      vocabulary: {
        tokens: Array.from({ length: vocabulary.size }, (_, id) => grammarTokenBytes(vocabulary, id)),
        stopIds: vocabulary.stopIds,
      },
      grammarCacheBytes: 64 * 1024 * 1024,
    },
    { onEvents: (batch) => events.push(batch), onLoadProgress: (fraction) => bar.update(fraction) },
  ).finally(() => bar.end());
  try {
    const grammar = await loadGrammar(request.schema, tokenizer, engine, signal);
    return await run(request, grammar, tokenizer, engine, events, write, signal);
  } finally {
    await engine.close();
  }
}

/** Hash of the loaded grammar, undefined without a schema. */
async function loadGrammar(
  schema: unknown,
  tokenizer: Tokenizer,
  engine: Engine,
  signal: AbortSignal,
): Promise<string | undefined> {
  if (schema === undefined) return undefined;
  const compiler = createGrammarCompiler({ vocabulary: tokenizer.vocabulary });
  try {
    const artifact = await compiler.compile({ kind: "json_schema", schema, strict: false }, signal);
    await engine.loadGrammar(artifact.hash, artifact.bytes);
    return artifact.hash;
  } finally {
    await compiler.close();
  }
}

async function run(
  request: Generation,
  grammar: string | undefined,
  tokenizer: Tokenizer,
  engine: Engine,
  events: EventQueue,
  write: (text: string) => void,
  signal: AbortSignal,
): Promise<GenerationResult> {
  const promptIds = request.raw
    ? Uint32Array.from([...tokenizer.prefixIds, ...tokenizer.encode(request.prompt)])
    : tokenizer.encodeChat({ messages: [{ role: "user", content: request.prompt }], addGenerationPrompt: true });
  const room = engine.info.contextLength - promptIds.length;
  if (room < 1) {
    throw new CommandError(
      `The prompt has ${promptIds.length} tokens; the model's context is ${engine.info.contextLength}.`,
    );
  }
  const decoder = tokenizer.decoder();
  const started = performance.now();
  const submitted = engine.submit({
    promptIds,
    generatedIds: new Uint32Array(0),
    maxNewTokens: Math.min(request.maxTokens, room),
    sampling: {
      ...greedy,
      temperature: request.temperature,
      seed: request.seed ?? Math.floor(Math.random() * 2 ** 31),
    },
    stopIds: tokenizer.vocabulary.stopIds,
    grammar,
    logprobs: undefined,
    salt: "",
    priority: 0,
    // Nobody else waits for this engine; a person ends it with Ctrl-C.
    deadlineMs: 24 * 60 * 60 * 1_000,
  });
  if ("refused" in submitted) throw new CommandError(submitted.message);
  let firstTokenAt: number | undefined;
  for (;;) {
    const event = await events.next(signal).catch((error: unknown) => {
      engine.cancel(submitted.id);
      throw error;
    });
    if (event.type === "tokens") {
      firstTokenAt ??= performance.now();
      write(decoder.pushAll(event.ids));
    } else if (event.type === "error") throw new CommandError(event.message);
    else if (event.type === "finish") {
      write(decoder.flush());
      const totalMs = performance.now() - started;
      return {
        finishReason: event.reason,
        promptTokens: event.usage.promptTokens,
        completionTokens: event.usage.completionTokens,
        firstTokenMs: (firstTokenAt ?? performance.now()) - started,
        totalMs,
      };
    }
  }
}

/** The engine calls back with whatever a step brought; a reader takes events one by one. One reader. */
class EventQueue {
  readonly #events: EngineEvent[] = [];
  #wake: (() => void) | undefined;

  push(batch: readonly EngineEvent[]): void {
    this.#events.push(...batch);
    this.#wake?.();
  }

  /** Throws the signal's reason when it aborts first. */
  async next(signal: AbortSignal): Promise<EngineEvent> {
    for (;;) {
      signal.throwIfAborted();
      const event = this.#events.shift();
      if (event !== undefined) return event;
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#wake = resolve;
      signal.addEventListener("abort", () => resolve(), { once: true });
      await promise;
    }
  }
}
