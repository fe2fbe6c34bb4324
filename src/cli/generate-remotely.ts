import { request as httpRequest } from "undici";
import { z } from "zod";
import { CommandError, exitCode } from "./exit.ts";
import type { Generation, GenerationResult } from "./generate.ts";

const chunk = z.object({
  choices: z.array(
    z.object({
      delta: z.object({ content: z.string().nullish() }).optional(),
      text: z.string().optional(),
      finish_reason: z.string().nullish(),
    }),
  ),
  usage: z.object({ prompt_tokens: z.int(), completion_tokens: z.int() }).nullish(),
});
const failure = z.object({ error: z.object({ message: z.string(), param: z.string().nullish() }) });

/** Asks a gateway over its OpenAI API. Throws CommandError with the gateway's own message, or the signal's reason. */
export async function generateRemotely(
  request: Generation,
  target: { readonly url: string; readonly key: string },
  write: (text: string) => void,
  signal: AbortSignal,
): Promise<GenerationResult> {
  const started = performance.now();
  const base = target.url.replace(/\/+$/, "").replace(/\/v1$/, "");
  const answer = await httpRequest(`${base}/v1/${request.raw ? "completions" : "chat/completions"}`, {
    method: "POST",
    headers: { authorization: `Bearer ${target.key}`, "content-type": "application/json" },
    body: JSON.stringify(body(request)),
    signal,
  }).catch((cause: unknown) => {
    signal.throwIfAborted();
    throw new CommandError(`${base} cannot be reached.`, exitCode.unavailable, cause);
  });
  if (answer.statusCode !== 200) throw refused(await answer.body.text(), answer.statusCode);

  let firstTokenAt: number | undefined;
  let finishReason: string | undefined;
  let usage = { prompt_tokens: 0, completion_tokens: 0 };
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") break;
    const json: unknown = JSON.parse(data);
    if (failure.safeParse(json).success) throw refused(data, 200);
    const part = chunk.parse(json);
    usage = part.usage ?? usage;
    for (const choice of part.choices) {
      const text = choice.delta?.content ?? choice.text ?? "";
      if (text !== "") firstTokenAt ??= performance.now();
      write(text);
      finishReason = choice.finish_reason ?? finishReason;
    }
  }
  if (finishReason === undefined) throw new CommandError("The answer broke off.");
  return {
    finishReason,
    promptTokens: usage.prompt_tokens,
    completionTokens: usage.completion_tokens,
    firstTokenMs: (firstTokenAt ?? performance.now()) - started,
    totalMs: performance.now() - started,
  };
}

function body({ prompt, raw, schema, model, maxTokens, temperature, seed }: Generation): object {
  return {
    model,
    ...(raw ? { prompt } : { messages: [{ role: "user", content: prompt }] }),
    max_tokens: maxTokens,
    temperature,
    ...(seed === undefined ? {} : { seed }),
    ...(schema === undefined
      ? {}
      : { response_format: { type: "json_schema", json_schema: { name: "answer", schema } } }),
    stream: true,
    stream_options: { include_usage: true },
  };
}

function refused(text: string, status: number): CommandError {
  let parsed: z.infer<typeof failure> | undefined;
  try {
    parsed = failure.parse(JSON.parse(text));
  } catch {
    return new CommandError(`The gateway answered ${status}: ${text.slice(0, 300)}`);
  }
  const { message, param } = parsed.error;
  const code = status === 400 ? exitCode.input : status === 404 ? exitCode.unavailable : exitCode.failure;
  return new CommandError(param ? `${message} (at ${param})` : message, code);
}

/** The `data` of each server-sent event; comments and other fields are left out. */
async function* events(bytes: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const piece of bytes) {
    rest += decoder.decode(piece, { stream: true });
    const lines = rest.split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6).trimEnd();
  }
}
