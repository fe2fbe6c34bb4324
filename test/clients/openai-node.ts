import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import {
  type Ask,
  type Client,
  type ClientOptions,
  findPlace,
  Place,
  type Seeing,
  type Seen,
  seeing,
} from "./client.ts";

type Params = Omit<OpenAI.ChatCompletionCreateParamsNonStreaming, "stream">;

const tool = zodFunction({ name: findPlace.name, description: findPlace.description, parameters: findPlace.input });

const paramsOf = ({ prompt, kind, model, maxTokens, fields }: Ask): Params => ({
  ...fields,
  model,
  messages: [{ role: "user", content: prompt }],
  temperature: 0,
  ...(maxTokens !== undefined && { max_completion_tokens: maxTokens }),
  ...(kind === "tool" && { tools: [tool], tool_choice: "required" as const, parallel_tool_calls: false }),
  ...(kind === "json" && { response_format: zodResponseFormat(Place, "place") }),
});
const optionsOf = ({ signal }: Ask) => ({ ...(signal && { signal }) });

const usageOf = (usage: OpenAI.CompletionUsage | null | undefined): Seen["usage"] =>
  usage ? { input: usage.prompt_tokens, output: usage.completion_tokens } : undefined;

/** As its user does who reads it to the end: the whole message is there, or something was thrown. */
function fill(seen: Seeing, answer: OpenAI.ChatCompletion, kind: Ask["kind"]): void {
  const [choice] = answer.choices;
  seen.text = choice?.message.content ?? "";
  seen.finish = choice?.finish_reason;
  seen.usage = usageOf(answer.usage);
  seen.calls = (choice?.message.tool_calls ?? []).map((call) =>
    call.type === "function"
      ? { name: call.function.name, input: JSON.parse(call.function.arguments) }
      : { name: call.type, input: undefined },
  );
  if (kind === "json" && choice !== undefined && "parsed" in choice.message) seen.value = choice.message.parsed;
}

const open = ({ baseURL, apiKey }: ClientOptions): OpenAI => new OpenAI({ baseURL, apiKey, maxRetries: 0 });

/** `create({ stream: true })`: chunks as they come, put together by the user. */
export function openaiRaw(options: ClientOptions): Client {
  const { completions } = open(options).chat;
  return {
    streamed: (ask) =>
      seeing(async (seen) => {
        const params = { ...paramsOf(ask), stream: true, stream_options: { include_usage: true } } as const;
        const names: string[] = [];
        const inputs: string[] = [];
        for await (const chunk of await completions.create(params, optionsOf(ask))) {
          const [choice] = chunk.choices;
          seen.text += choice?.delta.content ?? "";
          seen.finish = choice?.finish_reason ?? seen.finish;
          seen.usage = usageOf(chunk.usage) ?? seen.usage;
          for (const { index, function: called } of choice?.delta.tool_calls ?? []) {
            names[index] = (names[index] ?? "") + (called?.name ?? "");
            inputs[index] = (inputs[index] ?? "") + (called?.arguments ?? "");
          }
          if (choice?.delta.content || choice?.delta.tool_calls) ask.onPiece?.();
        }
        seen.calls = names.map((name, index) => ({ name, input: JSON.parse(inputs[index] ?? "") }));
        if (ask.kind === "json") seen.value = Place.parse(JSON.parse(seen.text));
      }),
    whole: (ask) =>
      seeing(async (seen) => {
        fill(seen, await completions.create(paramsOf(ask), optionsOf(ask)), ask.kind);
        if (ask.kind === "json") seen.value = Place.parse(JSON.parse(seen.text));
      }),
  };
}

/** `.stream()` and `.parse()`: the client puts the answer together. */
export function openaiStream(options: ClientOptions): Client {
  const { completions } = open(options).chat;
  return {
    streamed: (ask) =>
      seeing(async (seen) => {
        const stream = completions.stream(
          { ...paramsOf(ask), stream_options: { include_usage: true } },
          optionsOf(ask),
        );
        stream.on("content.delta", ({ delta }) => {
          seen.text += delta;
          ask.onPiece?.();
        });
        stream.on("tool_calls.function.arguments.delta", () => ask.onPiece?.());
        fill(seen, await stream.finalChatCompletion(), ask.kind);
      }),
    whole: (ask) =>
      seeing(async (seen) => {
        const [params, rest] = [paramsOf(ask), optionsOf(ask)];
        // `parse` also throws where a plain text was cut off by its limit.
        const answer = ask.kind === "text" ? completions.create(params, rest) : completions.parse(params, rest);
        fill(seen, await answer, ask.kind);
      }),
  };
}
