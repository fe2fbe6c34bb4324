import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, type LanguageModel, type LanguageModelUsage, Output, streamText, type ToolSet, tool } from "ai";
import { type Ask, type Client, type ClientOptions, findPlace, Place, type Seen, seeing } from "./client.ts";

const tools: ToolSet = { [findPlace.name]: tool({ description: findPlace.description, inputSchema: findPlace.input }) };

/** Each provider reads what stands under its name. */
const oneCall = { openai: { parallelToolCalls: false }, sluice: { parallel_tool_calls: false } };

const settingsOf = (model: LanguageModel, { prompt, kind, maxTokens, fields, signal }: Ask) => ({
  model,
  prompt,
  temperature: 0,
  maxRetries: 0,
  ...(maxTokens !== undefined && { maxOutputTokens: maxTokens }),
  ...(signal && { abortSignal: signal }),
  ...(fields && { providerOptions: { openai: fields, sluice: fields } }),
  ...(kind === "tool" && { tools, toolChoice: "required" as const, providerOptions: oneCall }),
  ...(kind === "json" && { output: Output.object({ schema: Place }) }),
});

interface Call {
  readonly toolName: string;
  readonly input: unknown;
  readonly invalid?: boolean | undefined;
}

/** A call whose input cannot be read is marked, and no tool is run for it. */
const callsOf = (calls: readonly Call[]): Seen["calls"] =>
  calls.filter(({ invalid }) => invalid !== true).map(({ toolName, input }) => ({ name: toolName, input }));

const usageOf = ({ inputTokens, outputTokens }: LanguageModelUsage): Seen["usage"] => ({
  input: inputTokens,
  output: outputTokens,
});

/** `streamText` reports a failure by an `error` part and `onError`, and in its `finishReason`; `generateText` throws. */
const clientOf = (modelOf: (name: string) => LanguageModel): Client => ({
  streamed: (ask) =>
    seeing(async (seen) => {
      let reported: unknown;
      const result = streamText({
        ...settingsOf(modelOf(ask.model), ask),
        onError({ error }) {
          reported = error;
        },
      });
      for await (const part of result.fullStream) {
        if (part.type === "text-delta") seen.text += part.text;
        if (part.type === "text-delta" || part.type === "tool-input-delta") ask.onPiece?.();
        if (part.type === "tool-call") seen.calls = [...seen.calls, ...callsOf([part])];
        if (part.type === "error") seen.error = part.error;
        if (part.type === "abort") seen.error = ask.signal?.reason;
        if (part.type === "finish") {
          seen.finish = part.finishReason;
          seen.usage = usageOf(part.totalUsage);
        }
      }
      if (reported !== seen.error && ask.signal?.aborted !== true) throw new Error("onError and the error part differ");
      if (ask.kind === "json" && seen.error === undefined) seen.value = await result.output;
    }),
  whole: (ask) =>
    seeing(async (seen) => {
      const result = await generateText(settingsOf(modelOf(ask.model), ask));
      seen.text = result.text;
      seen.finish = result.finishReason;
      seen.usage = usageOf(result.usage);
      seen.calls = callsOf(result.toolCalls);
      if (ask.kind === "json") seen.value = result.output;
    }),
});

export function aiSdkCompatible(options: ClientOptions): Client {
  const provider = createOpenAICompatible({
    ...options,
    name: "sluice",
    includeUsage: true,
    supportsStructuredOutputs: true,
  });
  return clientOf((name) => provider.chatModel(name));
}

export function aiSdkOpenAI(options: ClientOptions): Client {
  const provider = createOpenAI(options);
  return clientOf((name) => provider.chat(name));
}
