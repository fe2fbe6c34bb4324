import type { TokenLogprob } from "../backends/backend.ts";
import type { EngineEvent } from "./engine.ts";

/** What one batch of the engine's packed event stream says (layout: native/include/sluice/events.h). */
export interface EventBatch {
  readonly events: readonly EngineEvent[];
  /** Something changed in the KV cache. */
  readonly kvChanged: boolean;
}

const kinds = { accepted: 1, progress: 2, tokens: 3, finish: 4, error: 5, kvChange: 6 } as const;

const reasons = ["stop", "length"] as const;

const errorCodes = [
  "deadline_exceeded",
  "engine_failed",
  "engine_closed",
  "grammar_dead_end",
  "grammar_mismatch",
  "grammar_failed",
  "invalid_logits",
  "no_token_allowed",
] as const;

/** Throws RangeError on words that are not whole records: the two sides are of different versions. */
export function decodeEvents(words: Uint32Array): EventBatch {
  const reader = new WordReader(words);
  const events: EngineEvent[] = [];
  let kvChanged = false;
  while (!reader.done) {
    const kind = reader.word() & 0xff;
    const id = reader.word();
    if (kind === kinds.tokens) events.push(readTokens(reader, id));
    else if (kind === kinds.progress) events.push({ type: "progress", id, prefilled: reader.word() });
    else if (kind === kinds.accepted) events.push({ type: "accepted", id, cachedTokens: reader.word() });
    else if (kind === kinds.finish) events.push(readFinish(reader, id));
    else if (kind === kinds.error) events.push(readError(reader, id));
    else if (kind === kinds.kvChange) kvChanged = true;
    else throw new RangeError(`unknown record ${kind} in an event batch`);
  }
  return { events, kvChanged };
}

function readTokens(reader: WordReader, id: number): EngineEvent {
  const count = reader.word();
  const hasLogprobs = reader.word() !== 0;
  const ids: number[] = [];
  for (let left = count; left > 0; left--) ids.push(reader.word());
  if (!hasLogprobs) return { type: "tokens", id, ids, logprobs: undefined };
  const logprobs = ids.map((): TokenLogprob => {
    const logprob = reader.float();
    const top = Array.from({ length: reader.word() }, () => [reader.word(), reader.float()] as const);
    return { logprob, top };
  });
  return { type: "tokens", id, ids, logprobs };
}

function readFinish(reader: WordReader, id: number): EngineEvent {
  const reason = reasons[reader.word()];
  if (reason === undefined) throw new RangeError("unknown finish reason in an event batch");
  const usage = { promptTokens: reader.word(), cachedTokens: reader.word(), completionTokens: reader.word() };
  const queuedMs = reader.float();
  const prefillMs = reader.float();
  const decodeMs = reader.float();
  const maskMs = reader.float();
  const steps = reader.word();
  return { type: "finish", id, reason, usage, timings: { queuedMs, prefillMs, decodeMs, steps, maskMs } };
}

function readError(reader: WordReader, id: number): EngineEvent {
  const code = errorCodes[reader.word()] ?? "engine_failed";
  const retryable = reader.word() !== 0;
  return { type: "error", id, code, retryable, message: reader.text(reader.word()) };
}

class WordReader {
  readonly #words: Uint32Array;
  readonly #view: DataView;
  #at = 0;

  constructor(words: Uint32Array) {
    this.#words = words;
    this.#view = new DataView(words.buffer, words.byteOffset, words.byteLength);
  }

  get done(): boolean {
    return this.#at === this.#words.length;
  }

  word(): number {
    const word = this.#words[this.#at++];
    if (word === undefined) throw new RangeError("an event batch ends inside a record");
    return word;
  }

  /** The same four bytes as a float, in the machine's own byte order: the words never leave the process. */
  float(): number {
    const at = this.#at++ * 4;
    return this.#view.getFloat32(at, littleEndian);
  }

  text(bytes: number): string {
    const start = this.#at * 4;
    this.#at += Math.ceil(bytes / 4);
    if (this.#at > this.#words.length) throw new RangeError("an event batch ends inside a record");
    return decoder.decode(new Uint8Array(this.#view.buffer, this.#view.byteOffset + start, bytes));
  }
}

const decoder = new TextDecoder();
const littleEndian = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;
