import { ChatOpenAI } from "@langchain/openai";
import { type Ask, type Client, type ClientOptions, findPlace, Place, type Seeing, seeing } from "./client.ts";

const tool = { name: findPlace.name, description: findPlace.description, schema: findPlace.input };

/** `ChatOpenAI`: `stream()` throws in the middle, `invoke()` throws. */
export function langchain({ baseURL, apiKey }: ClientOptions): Client {
  const modelOf = ({ model, maxTokens, fields }: Ask) =>
    new ChatOpenAI({
      model,
      apiKey,
      configuration: { baseURL },
      temperature: 0,
      maxRetries: 0,
      ...(fields && { modelKwargs: fields }),
      ...(maxTokens !== undefined && { maxTokens }),
    });
  const optionsOf = ({ signal }: Ask) => ({ ...(signal && { signal }) });
  const runnable = (ask: Ask) => {
    const model = modelOf(ask);
    return ask.kind === "tool"
      ? model.bindTools([tool], { tool_choice: "required", parallel_tool_calls: false })
      : model;
  };
  const structured = (ask: Ask) =>
    modelOf(ask).withStructuredOutput(Place, { name: "place", method: "jsonSchema", strict: true });
  return {
    streamed: (ask) =>
      seeing(async (seen) => {
        if (ask.kind === "json") {
          for await (const partial of await structured(ask).stream(ask.prompt, optionsOf(ask))) {
            seen.value = partial;
            ask.onPiece?.();
          }
          return;
        }
        const stream = await runnable(ask).stream(ask.prompt, optionsOf(ask));
        let all: Awaited<ReturnType<(typeof stream)["next"]>>["value"];
        for await (const chunk of stream) {
          all = all === undefined ? chunk : all.concat(chunk);
          seen.text = all.text;
          if (chunk.text !== "" || chunk.tool_call_chunks?.length) ask.onPiece?.();
        }
        fill(seen, all);
      }),
    whole: (ask) =>
      seeing(async (seen) => {
        if (ask.kind === "json") {
          seen.value = await structured(ask).invoke(ask.prompt, optionsOf(ask));
          return;
        }
        const message = await runnable(ask).invoke(ask.prompt, optionsOf(ask));
        seen.text = message.text;
        fill(seen, message);
      }),
  };
}

interface Message {
  readonly response_metadata: Readonly<Record<string, unknown>>;
  readonly usage_metadata?: { readonly input_tokens: number; readonly output_tokens: number } | undefined;
  readonly tool_calls?: ReadonlyArray<{ readonly name: string; readonly args: unknown }> | undefined;
}

function fill(seen: Seeing, message: Message | undefined): void {
  if (message === undefined) return;
  const { finish_reason: finish } = message.response_metadata;
  seen.finish = typeof finish === "string" ? finish : undefined;
  const { usage_metadata: usage } = message;
  seen.usage = usage && { input: usage.input_tokens, output: usage.output_tokens };
  seen.calls = (message.tool_calls ?? []).map(({ name, args }) => ({ name, input: args }));
}
