import type { OpenAICapabilities } from "../../config/schema.ts";
import { SluiceError } from "../../errors.ts";
import type { GenerationRequest } from "../backend.ts";
import { type Fields, list, record } from "./json.ts";

export type LowerInput = Pick<GenerationRequest, "text" | "sampling" | "maxNewTokens"> &
  Partial<Pick<GenerationRequest, "model" | "generatedIds">>;

export interface Lowered {
  readonly path: "/chat/completions" | "/completions";
  readonly body: Fields;
  /** The request ends in a part of the answer that the upstream is to go on from. */
  readonly continuation: boolean;
  /** Log probabilities were asked for. */
  readonly logprobs: boolean;
}

/**
 * The validated body of a caller -> the body for an OpenAI-compatible endpoint: one choice, always streamed with usage,
 * bounded by what admission holds. Every field of the body is sent, done by the gateway, without effect, or refused by
 * name; the table is in this folder's README. Pure.
 *
 * Throws SluiceError 400 `capability_missing` with the field as `param`, `retryable`: another pool may offer it.
 */
export function lower(request: LowerInput, capabilities: OpenAICapabilities): Lowered {
  const { kind, body } = request.text;
  const sent: Record<string, unknown> = { model: request.model, ...carried(body, capabilities) };
  const chat = kind === "chat";
  const structured = structuredOutput(body, capabilities);
  if (structured !== undefined) Object.assign(sent, structured);
  Object.assign(sent, toolUse(body, capabilities));
  const continuation = (request.text.generated ?? "") !== "" || (request.generatedIds?.length ?? 0) > 0;
  if (continuation && (structured !== undefined || sent.tools !== undefined)) {
    // The upstream's grammar would begin anew in the middle of the answer.
    throw missing("stream", "a structured answer cannot be continued there");
  }
  Object.assign(sent, chat ? chatPrompt(request, capabilities) : textPrompt(request, capabilities));
  const logprobs = logprobFields(body, chat, capabilities);
  Object.assign(sent, logprobs);
  const seed = seedOf(request, capabilities);
  if (seed !== undefined) sent.seed = seed;
  // `/completions` has but the one name.
  sent[chat ? capabilities.maxTokensField : "max_tokens"] = request.maxNewTokens;
  sent.stream = true;
  if (capabilities.streamUsage) sent.stream_options = { include_usage: true };
  return {
    path: chat ? "/chat/completions" : "/completions",
    body: sent,
    continuation,
    logprobs: logprobs !== undefined,
  };
}

/** The error of `lower` without its throw; undefined = the endpoint can serve the request. */
export function objectionTo(request: LowerInput, capabilities: OpenAICapabilities): SluiceError | undefined {
  try {
    lower(request, capabilities);
    return undefined;
  } catch (error) {
    if (error instanceof SluiceError) return error;
    throw error;
  }
}

type Rule = "sent" | "elsewhere" | "noted" | ((value: unknown, capabilities: OpenAICapabilities) => "sent" | "done");

/** A field of vLLM's API: sent where declared, nothing where its value is off, else refused. */
const extension =
  (name: OpenAICapabilities["extensions"][number], off: (value: unknown) => boolean): Rule =>
  (value, capabilities) => {
    if (off(value)) return "done";
    if (!capabilities.extensions.includes(name)) throw missing(name);
    return "sent";
  };

const isEmpty = (value: unknown): boolean =>
  typeof value === "object" && value !== null && Object.keys(value).length === 0;

const sharedVocabulary = (name: string, off: (value: unknown) => boolean): Rule => {
  return (value, capabilities) => {
    if (off(value)) return "done";
    if (!capabilities.sharedVocabulary) throw missing(name, "its token ids may mean something else there");
    return "sent";
  };
};

const stopTokenIds: Rule = (value, capabilities) => {
  if (isEmpty(value)) return "done";
  if (!capabilities.extensions.includes("stop_token_ids")) throw missing("stop_token_ids");
  if (!capabilities.sharedVocabulary) throw missing("stop_token_ids", "its token ids may mean something else there");
  return "sent";
};

/** What becomes of each field that a body may hold. `elsewhere` = one of the functions below. */
const rules: Readonly<Record<string, Rule>> = {
  temperature: "sent",
  top_p: "sent",
  presence_penalty: "sent",
  frequency_penalty: "sent",
  // `relay` looks for stop strings itself; sending them only saves the tokens behind one.
  stop: (_, capabilities) => (capabilities.stop ? "sent" : "done"),
  logit_bias: sharedVocabulary("logit_bias", isEmpty),
  top_k: extension("top_k", (value) => typeof value === "number" && value <= 0),
  min_p: extension("min_p", (value) => value === 0),
  repetition_penalty: extension("repetition_penalty", (value) => value === 1),
  ignore_eos: extension("ignore_eos", (value) => value === false),
  stop_token_ids: stopTokenIds,
  bad_words: extension("bad_words", isEmpty),
  chat_template_kwargs: extension("chat_template_kwargs", isEmpty),
  ...all("elsewhere", ["messages", "prompt", "response_format", "structured_outputs", "tools", "tool_choice"]),
  ...all("elsewhere", [
    "parallel_tool_calls",
    "logprobs",
    "top_logprobs",
    "seed",
    "max_tokens",
    "max_completion_tokens",
  ]),
  // The gateway's own: it fans `n` out, streams as the caller wants, and names the model by the pool's settings.
  ...all("elsewhere", ["model", "stream", "stream_options", "n"]),
  // For the caller's own books: `store` and `metadata` would leave the caller's data with a third party.
  ...all("noted", ["user", "metadata", "store", "service_tier", "safety_identifier"]),
  ...all("noted", ["prompt_cache_key", "prompt_cache_retention"]),
  // Validation lets them pass only with a value that asks for nothing.
  ...all("noted", ["modalities", "audio", "prediction", "web_search_options", "functions", "function_call"]),
  ...all("noted", ["reasoning_effort", "verbosity", "best_of", "echo", "suffix", "min_tokens"]),
};

function all(rule: Rule, names: readonly string[]): Record<string, Rule> {
  return Object.fromEntries(names.map((name) => [name, rule]));
}

function carried(body: Fields, capabilities: OpenAICapabilities): Record<string, unknown> {
  const sent: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(body)) {
    if (value === undefined || value === null) continue;
    const rule = Object.hasOwn(rules, name) ? rules[name] : undefined;
    // A field that this file does not know would be dropped in silence.
    if (rule === undefined) throw missing(name);
    const fate = typeof rule === "string" ? rule : rule(value, capabilities);
    if (fate === "sent") sent[name] = value;
  }
  return sent;
}

function structuredOutput(body: Fields, capabilities: OpenAICapabilities): Fields | undefined {
  const outputs = record(body.structured_outputs);
  if (outputs !== undefined) {
    if (capabilities.extensions.includes("structured_outputs")) return { structured_outputs: outputs };
    if (outputs.json !== undefined && capabilities.jsonSchema) {
      const schema: unknown = typeof outputs.json === "string" ? JSON.parse(outputs.json) : outputs.json;
      return { response_format: { type: "json_schema", json_schema: { name: "answer", schema, strict: true } } };
    }
    if (outputs.json_object === true && capabilities.jsonObject) return { response_format: { type: "json_object" } };
    throw missing("structured_outputs");
  }
  const format = record(body.response_format);
  if (format === undefined || format.type === "text") return undefined;
  // The API takes a format without a schema for any JSON object.
  const anyObject = format.type === "json_object" || record(format.json_schema)?.schema === undefined;
  if (anyObject ? !capabilities.jsonObject : !capabilities.jsonSchema) throw missing("response_format");
  return { response_format: anyObject ? { type: "json_object" } : format };
}

function toolUse(body: Fields, capabilities: OpenAICapabilities): Fields {
  const tools = list(body.tools);
  // Without `tools` the other two say nothing; with `none` no model is shown them.
  if (tools === undefined || (body.tool_choice === "none" && !capabilities.tools)) return {};
  if (!capabilities.tools) throw missing("tools");
  tools.forEach((tool, index) => {
    if (record(record(tool)?.function)?.strict === true && !capabilities.jsonSchema) {
      throw missing(`tools[${index}].function.strict`);
    }
  });
  const given = Object.entries({ tool_choice: body.tool_choice, parallel_tool_calls: body.parallel_tool_calls });
  return { tools, ...Object.fromEntries(given.filter(([, value]) => value !== undefined && value !== null)) };
}

function chatPrompt({ text }: LowerInput, capabilities: OpenAICapabilities): Fields {
  const messages = (list(text.body.messages) ?? []).map((entry, index) => {
    const message = record(entry) ?? {};
    const calls = list(message.tool_calls);
    if ((message.role === "tool" || (calls?.length ?? 0) > 0) && !capabilities.tools) {
      throw missing(`messages[${index}]`, "it is part of a tool call");
    }
    const kept = Object.entries(message).filter(
      ([name, value]) => value !== undefined && name !== "annotations" && (value !== null || name === "content"),
    );
    const developer = message.role === "developer" && !capabilities.developerRole;
    return { ...Object.fromEntries(kept), ...(developer && { role: "system" }) };
  });
  const generated = text.generated ?? "";
  if (generated === "") return { messages };
  const last = record((list(text.body.messages) ?? []).at(-1));
  if (capabilities.assistantPrefill === false || last?.role === "assistant") {
    throw missing("messages", "an answer cannot be continued there");
  }
  const flagged = capabilities.assistantPrefill === "prefix" && { prefix: true };
  return {
    messages: [...messages, { role: "assistant", content: generated, ...flagged }],
    ...(capabilities.assistantPrefill === "continue_final_message" && {
      continue_final_message: true,
      add_generation_prompt: false,
    }),
  };
}

function textPrompt({ text, generatedIds }: LowerInput, capabilities: OpenAICapabilities): Fields {
  if (!capabilities.completions) throw missing("prompt", "it has no text completions");
  const prompt = onePrompt(text.body.prompt, text.promptIndex);
  const generated = text.generated ?? "";
  if (typeof prompt === "string") return { prompt: prompt + generated };
  if (!capabilities.sharedVocabulary) throw missing("prompt", "its token ids may mean something else there");
  const ids = Array.from(generatedIds ?? []);
  if (generated !== "" && ids.length === 0) throw missing("prompt", "an answer cannot be continued there");
  return { prompt: [...prompt, ...ids] };
}

function onePrompt(given: unknown, index: number | undefined): string | readonly unknown[] {
  if (typeof given === "string") return given;
  const prompts = list(given) ?? [];
  if (typeof prompts[0] === "number") return prompts;
  const one = index === undefined && prompts.length > 1 ? undefined : prompts[index ?? 0];
  if (typeof one === "string") return one;
  const ids = list(one);
  if (ids === undefined) throw missing("prompt", "it takes one prompt at a time");
  return ids;
}

function logprobFields(body: Fields, chat: boolean, capabilities: OpenAICapabilities): Fields | undefined {
  const { logprobs, top_logprobs: top } = body;
  if (logprobs === undefined || logprobs === null || logprobs === false) return undefined;
  if (!capabilities.logprobs) throw missing("logprobs");
  return { logprobs, ...(chat && typeof top === "number" && { top_logprobs: top }) };
}

/**
 * Each choice is a request of its own there, so each needs a seed of its own. A seed that nobody asked for makes a repeated
 * attempt likely to begin alike; it is kept in 31 bits, which every engine takes.
 */
function seedOf({ text, sampling }: LowerInput, capabilities: OpenAICapabilities): number | undefined {
  const asked = text.body.seed;
  if (!capabilities.seed) {
    if (asked !== undefined && asked !== null) throw missing("seed");
    return undefined;
  }
  if (typeof asked !== "number") return (sampling.seed + sampling.choice) & 0x7fff_ffff;
  const next = asked + sampling.choice;
  return Number.isSafeInteger(next) ? next : asked - sampling.choice;
}

function missing(param: string, why?: string): SluiceError {
  return new SluiceError({
    status: 400,
    type: "invalid_request_error",
    code: "capability_missing",
    message: `The backend of this model does not support '${param}'${why === undefined ? "" : `: ${why}`}.`,
    param,
    retryable: true,
  });
}
