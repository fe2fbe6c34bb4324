import { expect } from "vitest";
import { canonicalAnswer } from "../support/upstream/wire.ts";
import type { FaultGateway } from "./gateway.ts";

export const variants = [
  ["chat, streamed", { api: "chat", stream: true }],
  ["chat, whole", { api: "chat", stream: false }],
  ["completions, streamed", { api: "completions", stream: true }],
  ["completions, whole", { api: "completions", stream: false }],
] as const;
export type Variant = (typeof variants)[number][1];

export interface Seen {
  readonly content: string;
  readonly finish: string | null | undefined;
  readonly model: string | undefined;
  readonly completionTokens: number | undefined;
  readonly error: unknown;
  readonly ms: number;
}

/** What a caller sees, through the openai client without its own retries. */
export async function ask(
  { openai }: FaultGateway,
  { api, stream }: Variant,
  prompt = "What is a gateway judged on?",
): Promise<Seen> {
  const began = performance.now();
  const seen = { content: "", finish: undefined as Seen["finish"], model: undefined as string | undefined };
  let completionTokens: number | undefined;
  let error: unknown;
  try {
    const usage = { stream_options: { include_usage: true } } as const;
    const chat = { model: "m", messages: [{ role: "user" as const, content: prompt }] };
    const text = { model: "m", prompt };
    if (stream) {
      const chunks =
        api === "chat"
          ? await openai.chat.completions.create({ ...chat, stream, ...usage })
          : await openai.completions.create({ ...text, stream, ...usage });
      for await (const chunk of chunks) {
        const [choice] = chunk.choices;
        if (choice !== undefined) {
          seen.content += ("delta" in choice ? choice.delta.content : choice.text) ?? "";
          seen.finish = choice.finish_reason ?? seen.finish;
        }
        seen.model = chunk.model;
        completionTokens = chunk.usage?.completion_tokens ?? completionTokens;
      }
    } else {
      const answer =
        api === "chat" ? await openai.chat.completions.create(chat) : await openai.completions.create(text);
      const [choice] = answer.choices;
      seen.content = (choice !== undefined && "message" in choice ? choice.message.content : choice?.text) ?? "";
      seen.finish = choice?.finish_reason;
      seen.model = answer.model;
      completionTokens = answer.usage?.completion_tokens;
    }
  } catch (thrown) {
    error = thrown;
  }
  return { ...seen, completionTokens, error, ms: performance.now() - began };
}

export function expectWhole(seen: Seen): void {
  expect(seen.error).toBeUndefined();
  expect(seen.content).toBe(canonicalAnswer);
  expect(seen.finish).toBe("stop");
  expect(seen.completionTokens).toBeGreaterThanOrEqual(60);
}

export const attempts = ({ upstream }: FaultGateway, model: string) => upstream.attemptsOn(model).length;
