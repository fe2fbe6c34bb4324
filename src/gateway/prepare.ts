import type { BackendInfo } from "../backends/backend.ts";
import type { ModelConfig } from "../config/schema.ts";
import { invalidRequest, SluiceError, unavailable } from "../errors.ts";
import type { GrammarArtifact, GrammarCompiler, GrammarSource } from "../grammar/grammar.ts";
import { toolGrammar } from "../grammar/tools.ts";
import type { Tokenizer } from "../tokenizer/index.ts";
import type { Call, PromptInput } from "./api/call.ts";
import { blockKeys } from "./prompt/blocks.ts";
import { longestTokenBytes } from "./prompt/longest-token.ts";
import type { PreparedRequest, Tenant } from "./request.ts";
import type { TenantEntry } from "./tenants/directory.ts";

/** A model that callers can name: its settings, and what turns its text into tokens and back. */
export interface ServedModel {
  readonly name: string;
  readonly config: ModelConfig;
  readonly tokenizer: Tokenizer;
  readonly grammars: GrammarCompiler;
}

export interface PrepareInput {
  readonly id: string;
  readonly receivedAt: number;
  readonly call: Call;
  readonly entry: TenantEntry;
  readonly model: ServedModel;
  /** What a backend of the model has told of itself; undefined while none has answered. */
  readonly info: BackendInfo | undefined;
  readonly traceparent: string | undefined;
  readonly signal: AbortSignal;
}

/**
 * Text -> tokens: template, tokenizer, block keys, grammar artifact, and how many tokens may come. One request for each
 * prompt of the call. Throws SluiceError: 400 with the path for what cannot be encoded, compiled or does not fit, 503
 * while no backend of the model is known.
 */
export async function prepare(input: PrepareInput): Promise<readonly PreparedRequest[]> {
  const { call, model, entry } = input;
  const { tokenizer } = model;
  const facts = factsOf(input.info);
  const source = call.grammar ?? (call.toolUse && toolGrammar(call.toolUse, tokenizer.toolCallTags));
  const prompts = call.prompts.map((prompt) => encode(prompt, call, tokenizer, facts.contextLength));
  const grammar = source && { source, artifact: await compile(model.grammars, source, input) };
  const tenant: Tenant =
    model.config.cacheSharing === "model" ? { ...entry.tenant, salt: entry.sharedSalt } : entry.tenant;
  const sampling: PreparedRequest["sampling"] = {
    temperature: call.temperature,
    topK: call.topK,
    topP: call.topP,
    minP: call.minP,
    repetitionPenalty: call.repetitionPenalty,
    presencePenalty: call.presencePenalty,
    frequencyPenalty: call.frequencyPenalty,
    logitBias: biases(call.logitBias, tokenizer.vocabulary.size),
    bannedSequences: banned(call.badWords, tokenizer),
    seed: call.seed ?? drawSeed(),
  };
  const stopIds = call.ignoreEos ? [...call.stopTokenIds] : [...tokenizer.vocabulary.stopIds, ...call.stopTokenIds];
  checkIds(call.stopTokenIds, tokenizer.vocabulary.size, "stop_token_ids");
  return prompts.map((promptIds, index) => ({
    id: prompts.length === 1 ? input.id : `${input.id}-${index}`,
    receivedAt: input.receivedAt,
    tenant,
    model: model.name,
    promptIds,
    blockKeys: blockKeys(promptIds, facts.blockSize, tenant.salt),
    blockSize: facts.blockSize,
    maxNewTokens: Math.min(
      call.maxTokens ?? model.config.defaultMaxTokens,
      model.config.maxTokens ?? Number.POSITIVE_INFINITY,
      facts.contextLength - promptIds.length,
    ),
    sampling,
    n: call.n,
    stopIds,
    stop: call.stop,
    grammar,
    logprobs: call.logprobs,
    text: { kind: call.api, body: call.body, ...(prompts.length > 1 && { promptIndex: index }) },
    held: !call.stream,
    traceparent: input.traceparent,
  }));
}

/** A compiler speaks of `response_format`; a caller who used the other field is told of that one. */
async function compile(
  grammars: GrammarCompiler,
  source: GrammarSource,
  input: PrepareInput,
): Promise<GrammarArtifact> {
  try {
    return await grammars.compile(source, input.signal);
  } catch (error) {
    const given = "response_format.json_schema.schema";
    if (!(error instanceof SluiceError) || !input.call.body.structured_outputs || !error.param?.startsWith(given))
      throw error;
    throw invalidRequest(error.code, error.message, `structured_outputs.json${error.param.slice(given.length)}`);
  }
}

function factsOf(info: BackendInfo | undefined): { readonly contextLength: number; readonly blockSize: number } {
  if (info === undefined) {
    throw unavailable("no_backend", "No backend of this model can take a request now.", { retryAfterMs: 1_000 });
  }
  // A cache smaller than the context bounds what can ever run.
  return { contextLength: Math.min(info.contextLength, info.kvTokens), blockSize: info.blockSize };
}

function encode(prompt: PromptInput, call: Call, tokenizer: Tokenizer, contextLength: number): Uint32Array {
  const param = prompt.kind === "messages" ? "messages" : prompt.param;
  // Tokenizing megabytes only to refuse them would hold up everyone else on this thread.
  const least = Math.ceil(textLength(prompt) / longestTokenBytes(tokenizer.vocabulary));
  if (least >= contextLength) throw tooLong(contextLength, `at least ${least}`, param);
  const ids = promptIds(prompt, call, tokenizer);
  if (ids.length === 0) throw invalidRequest("invalid_value", `Invalid value for '${param}': it is empty.`, param);
  if (ids.length >= contextLength) throw tooLong(contextLength, String(ids.length), param);
  return ids;
}

function promptIds(prompt: PromptInput, call: Call, tokenizer: Tokenizer): Uint32Array {
  switch (prompt.kind) {
    case "messages": {
      const tools = call.toolUse === undefined || call.toolUse.choice === "none" ? undefined : call.toolUse.tools;
      const { messages, templateKwargs } = prompt;
      return tokenizer.encodeChat({ messages, tools, addGenerationPrompt: true, templateKwargs });
    }
    case "text": {
      const ids = tokenizer.encode(prompt.text);
      return tokenizer.prefixIds.length === 0 ? ids : Uint32Array.from([...tokenizer.prefixIds, ...ids]);
    }
    case "ids":
      checkIds(prompt.ids, tokenizer.vocabulary.size, prompt.param);
      return Uint32Array.from(prompt.ids);
  }
}

function textLength(prompt: PromptInput): number {
  if (prompt.kind === "ids") return 0;
  if (prompt.kind === "text") return prompt.text.length;
  let length = 0;
  for (const { content } of prompt.messages) {
    if (typeof content === "string") length += content.length;
    else for (const part of content ?? []) length += part.text?.length ?? 0;
  }
  return length;
}

const tooLong = (contextLength: number, tokens: string, param: string): SluiceError =>
  invalidRequest(
    "context_length_exceeded",
    `This model's maximum context length is ${contextLength} tokens, the answer included; the prompt is ${tokens} tokens long.`,
    param,
  );

function checkIds(ids: readonly number[], size: number, param: string): void {
  const bad = ids.findIndex((id) => id >= size);
  if (bad >= 0) {
    const path = `${param}[${bad}]`;
    throw invalidRequest("invalid_value", `Invalid value for '${path}': no token of this model has this id.`, path);
  }
}

function biases(given: Call["logitBias"], size: number): Array<readonly [number, number]> {
  return Object.entries(given).map(([id, bias]) => {
    if (Number(id) >= size) {
      const param = `logit_bias.${id}`;
      throw invalidRequest("invalid_value", `Invalid value for '${param}': no token of this model has this id.`, param);
    }
    return [Number(id), bias] as const;
  });
}

/** A word begins a text or follows a space, which are different tokens; vLLM bans both forms as well. */
function banned(words: readonly string[], tokenizer: Tokenizer): number[][] {
  return words.flatMap((word, index) =>
    [word, ` ${word.trimStart()}`].map((form) => {
      const ids = Array.from(tokenizer.encode(form));
      if (ids.length === 0 || ids.length > 64) {
        const param = `bad_words[${index}]`;
        throw invalidRequest("invalid_value", `Invalid value for '${param}': expected 1 to 64 tokens.`, param);
      }
      return ids;
    }),
  );
}

/** Drawn in bulk: a call costs several microseconds, whatever it fills. */
const seeds = new Uint32Array(256);
let seedsDrawn = seeds.length;

function drawSeed(): number {
  if (seedsDrawn === seeds.length) {
    crypto.getRandomValues(seeds);
    seedsDrawn = 0;
  }
  return seeds[seedsDrawn++] ?? 0;
}
