import { z } from "zod";
import { generationFields, responseFormat, unsupported } from "./fields.ts";

/** The body of `POST /v1/chat/completions`. */

const name = z.string().max(64).nullish();
const text = z.strictObject({ type: z.literal("text"), text: z.string() });
const refusal = z.strictObject({ type: z.literal("refusal"), refusal: z.string() });

/** A part that is known but cannot be read by a text model; the fault is at its `type`. */
const unreadable = (type: string, what: string) =>
  z.looseObject({ type: z.literal(type) }).superRefine((_, context) => {
    context.addIssue({
      code: "custom",
      path: ["type"],
      message: `The model reads text; ${what} is not supported.`,
      params: { code: "unsupported_parameter" },
    });
  });

const textContent = z.union([z.string(), z.array(text).min(1)]);
const userContent = z.union([
  z.string(),
  z
    .array(
      z.discriminatedUnion("type", [
        text,
        unreadable("image_url", "image input"),
        unreadable("input_audio", "audio input"),
        unreadable("file", "file input"),
      ]),
    )
    .min(1),
]);
const assistantContent = z.union([z.string(), z.array(z.discriminatedUnion("type", [text, refusal])).min(1)]);

const toolCall = z.strictObject({
  id: z.string().min(1),
  type: z.literal("function"),
  function: z.strictObject({ name: z.string().min(1), arguments: z.string() }),
});

const message = z.discriminatedUnion("role", [
  z.strictObject({ role: z.literal("system"), content: textContent, name }),
  z.strictObject({ role: z.literal("developer"), content: textContent, name }),
  z.strictObject({ role: z.literal("user"), content: userContent, name }),
  z.strictObject({
    role: z.literal("assistant"),
    content: assistantContent.nullish(),
    name,
    refusal: z.string().nullish(),
    tool_calls: z.array(toolCall).max(128).nullish(),
    // Clients send an answer back as they got it; these two come with it and say nothing to the model.
    annotations: z.array(z.unknown()).nullish(),
    audio: unsupported("The model reads text; audio is not supported."),
    function_call: unsupported("Use tool_calls."),
  }),
  z.strictObject({ role: z.literal("tool"), content: textContent, tool_call_id: z.string().min(1) }),
]);
export type ChatMessageBody = z.output<typeof message>;

const functionName = z.string().regex(/^[a-zA-Z0-9_.-]{1,64}$/, "expected 1 to 64 letters, digits, '_', '-' or '.'");

const tool = z.strictObject({
  type: z.literal("function", { error: "only tools of type 'function' are supported" }),
  function: z.strictObject({
    name: functionName,
    description: z.string().nullish(),
    parameters: z.record(z.string(), z.unknown()).nullish(),
    strict: z.boolean().nullish(),
  }),
});
export type ToolBody = z.output<typeof tool>;

const toolChoice = z.union([
  z.enum(["none", "auto", "required"]),
  z.strictObject({ type: z.literal("function"), function: z.strictObject({ name: functionName }) }),
]);
export type ToolChoiceBody = z.output<typeof toolChoice>;

export const chatBody = z
  .strictObject({
    ...generationFields,
    messages: z.array(message).min(1),
    max_completion_tokens: z.int().min(1).nullish(),
    logprobs: z.boolean().nullish(),
    top_logprobs: z.int().min(0).max(20).nullish(),
    response_format: responseFormat.nullish(),
    tools: z.array(tool).min(1).max(128).nullish(),
    tool_choice: toolChoice.nullish(),
    parallel_tool_calls: z.boolean().nullish(),
    // vLLM's: more variables for the chat template.
    chat_template_kwargs: z.record(z.string(), z.unknown()).nullish(),
    modalities: unsupported("Only text is generated.", (value) => JSON.stringify(value) === '["text"]'),
    audio: unsupported("Only text is generated."),
    prediction: unsupported("Predicted output is not used."),
    web_search_options: unsupported("There is no web search."),
    functions: unsupported("Use tools."),
    function_call: unsupported("Use tool_choice."),
    reasoning_effort: unsupported("The model has no setting for it.", (value) => value === "none"),
    verbosity: unsupported("The model has no setting for it.", (value) => value === "medium"),
  })
  .superRefine((body, context) => {
    const refuse = (path: PropertyKey[], message: string): void => context.addIssue({ code: "custom", path, message });
    if (typeof body.top_logprobs === "number" && body.logprobs !== true) {
      refuse(["top_logprobs"], "it needs logprobs: true");
    }
    const choice = body.tool_choice;
    if (choice && choice !== "none" && choice !== "auto" && !body.tools) refuse(["tool_choice"], "it needs tools");
    const names = new Set<string>();
    body.tools?.forEach((entry, index) => {
      if (names.has(entry.function.name)) refuse(["tools", index, "function", "name"], "another tool has this name");
      names.add(entry.function.name);
    });
    if (typeof choice === "object" && choice !== null && body.tools && !names.has(choice.function.name)) {
      refuse(["tool_choice", "function", "name"], "no tool has this name");
    }
  });
export type ChatBody = z.output<typeof chatBody>;
