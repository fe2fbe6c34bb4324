import type { z } from "zod";
import { invalidRequest } from "../../errors.ts";
import type { GrammarSource } from "../../grammar/grammar.ts";
import type { ChatMessage, ToolDefinition } from "../../tokenizer/index.ts";
import type { AnswerFormat } from "./answer.ts";
import { type ChatBody, chatBody, type ToolChoiceBody } from "./chat.ts";
import { chatFormat } from "./chat-answer.ts";
import { completionFormat } from "./completion-answer.ts";
import { type CompletionBody, completionBody } from "./completions.ts";
import type { GenerationFields, responseFormat } from "./fields.ts";

export interface ToolUse {
  readonly tools: readonly (ToolDefinition & { readonly strict: boolean })[];
  readonly choice: ToolChoiceBody;
  readonly parallel: boolean;
}

export type PromptInput =
  | {
      readonly kind: "messages";
      readonly messages: readonly ChatMessage[];
      readonly templateKwargs: Readonly<Record<string, unknown>> | undefined;
    }
  | { readonly kind: "text"; readonly text: string; readonly param: string }
  | { readonly kind: "ids"; readonly ids: readonly number[]; readonly param: string };

/** What a caller asked for, the same for both APIs; the stages after `receive` know no field names. */
export interface Call {
  readonly api: "chat" | "completion";
  readonly body: Readonly<Record<string, unknown>>;
  readonly format: AnswerFormat;
  readonly model: string;
  readonly stream: boolean;
  readonly includeUsage: boolean;
  readonly n: number;
  /** One answer set each; the chat API has exactly one. */
  readonly prompts: readonly PromptInput[];
  readonly maxTokens: number | undefined;
  readonly temperature: number;
  readonly topP: number;
  readonly topK: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  readonly seed: number | undefined;
  readonly logitBias: Readonly<Record<string, number>>;
  readonly badWords: readonly string[];
  readonly stop: readonly string[];
  readonly stopTokenIds: readonly number[];
  readonly ignoreEos: boolean;
  readonly logprobs: number | undefined;
  readonly grammar: GrammarSource | undefined;
  readonly toolUse: ToolUse | undefined;
}

/** One of the two generating APIs: its body's schema, and what a valid body means. */
export interface Api<Body> {
  readonly name: Call["api"];
  readonly schema: z.ZodType<Body>;
  toCall(body: Body): Call;
}

const escaped = (text: string): string => text.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&");

function structured(
  format: z.output<typeof responseFormat> | null | undefined,
  outputs: GenerationFields["structured_outputs"],
): GrammarSource | undefined {
  if (format && format.type !== "text" && outputs) {
    throw invalidRequest(
      "invalid_value",
      "Only one of response_format and structured_outputs can be given.",
      "structured_outputs",
    );
  }
  if (outputs) {
    if (outputs.json !== undefined) return { kind: "json_schema", schema: parsed(outputs.json), strict: false };
    if (outputs.json_object) return { kind: "json_object" };
    if (outputs.regex !== undefined) return { kind: "regex", pattern: outputs.regex };
    if (outputs.grammar !== undefined) return { kind: "ebnf", grammar: outputs.grammar };
    if (outputs.choice !== undefined) return { kind: "regex", pattern: `(${outputs.choice.map(escaped).join("|")})` };
    return { kind: "structural_tag", tag: outputs.structural_tag };
  }
  if (!format || format.type === "text") return undefined;
  if (format.type === "json_object" || format.json_schema.schema === undefined) return { kind: "json_object" };
  return { kind: "json_schema", schema: format.json_schema.schema, strict: format.json_schema.strict ?? false };
}

function parsed(json: unknown): unknown {
  if (typeof json !== "string") return json;
  try {
    return JSON.parse(json);
  } catch {
    throw invalidRequest(
      "invalid_value",
      "Invalid value for 'structured_outputs.json': no JSON.",
      "structured_outputs.json",
    );
  }
}

function common(body: GenerationFields) {
  const stop = body.stop ?? [];
  return {
    model: body.model,
    stream: body.stream ?? false,
    includeUsage: body.stream_options?.include_usage ?? false,
    n: body.n ?? 1,
    temperature: body.temperature ?? 1,
    topP: body.top_p ?? 1,
    topK: Math.max(0, body.top_k ?? 0),
    minP: body.min_p ?? 0,
    repetitionPenalty: body.repetition_penalty ?? 1,
    presencePenalty: body.presence_penalty ?? 0,
    frequencyPenalty: body.frequency_penalty ?? 0,
    seed: body.seed ?? undefined,
    logitBias: body.logit_bias ?? {},
    badWords: body.bad_words ?? [],
    stop: typeof stop === "string" ? [stop] : stop,
    stopTokenIds: body.stop_token_ids ?? [],
    ignoreEos: body.ignore_eos ?? false,
  };
}

/** A stop in the middle of a constrained answer could only break it, and it would still be reported as `stop`. */
function checkStops(call: Call): Call {
  if (call.grammar !== undefined || forced(call.toolUse)) {
    const refuse = (param: string): never => {
      const why = "it could end a structured answer before it is complete";
      throw invalidRequest("unsupported_parameter", `Unsupported parameter: '${param}' here: ${why}.`, param);
    };
    if (call.stop.length > 0) refuse("stop");
    if (call.stopTokenIds.length > 0) refuse("stop_token_ids");
    if (call.ignoreEos) refuse("ignore_eos");
  }
  return call;
}

const forced = (use: ToolUse | undefined): boolean =>
  use !== undefined && use.choice !== "auto" && use.choice !== "none";

export const chatApi: Api<ChatBody> = {
  name: "chat",
  schema: chatBody,
  toCall(body) {
    const grammar = structured(body.response_format, body.structured_outputs);
    const choice = body.tool_choice ?? "auto";
    const toolUse: ToolUse | undefined = body.tools
      ? {
          tools: body.tools.map(({ type, function: { name, description, parameters, strict } }) => ({
            type,
            function: { name, ...(description && { description }), ...(parameters && { parameters }) },
            strict: strict ?? false,
          })),
          choice,
          parallel: body.parallel_tool_calls ?? true,
        }
      : undefined;
    if (grammar !== undefined && toolUse !== undefined && choice !== "none") {
      const message = "Unsupported parameter: 'tools' together with a structured response; set tool_choice to none.";
      throw invalidRequest("unsupported_parameter", message, "tools");
    }
    return checkStops({
      ...common(body),
      api: "chat",
      body,
      format: chatFormat,
      prompts: [
        {
          kind: "messages",
          messages: body.messages as readonly ChatMessage[],
          templateKwargs: body.chat_template_kwargs ?? undefined,
        },
      ],
      maxTokens: body.max_completion_tokens ?? body.max_tokens ?? undefined,
      logprobs: body.logprobs === true ? (body.top_logprobs ?? 0) : undefined,
      grammar,
      toolUse,
    });
  },
};

function promptsOf(prompt: CompletionBody["prompt"]): readonly PromptInput[] {
  if (typeof prompt === "string") return [{ kind: "text", text: prompt, param: "prompt" }];
  const list: readonly (string | number | readonly number[])[] = prompt;
  const single = list.filter((entry) => typeof entry === "number");
  if (single.length > 0) return [{ kind: "ids", ids: single, param: "prompt" }];
  return list.map((entry, index): PromptInput => {
    const param = `prompt[${index}]`;
    if (typeof entry === "string") return { kind: "text", text: entry, param };
    return { kind: "ids", ids: typeof entry === "number" ? [entry] : entry, param };
  });
}

export const completionApi: Api<CompletionBody> = {
  name: "completion",
  schema: completionBody,
  toCall(body) {
    return checkStops({
      ...common(body),
      api: "completion",
      body,
      format: completionFormat,
      prompts: promptsOf(body.prompt),
      // OpenAI's completions stop after 16 tokens unless told otherwise; the operator's default is kinder and bounded too.
      maxTokens: body.max_tokens ?? undefined,
      logprobs: body.logprobs ?? undefined,
      grammar: structured(body.response_format, body.structured_outputs),
      toolUse: undefined,
    });
  },
};
