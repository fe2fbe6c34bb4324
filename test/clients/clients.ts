import { AISDKError, APICallError } from "ai";
import OpenAI from "openai";
import { aiSdkCompatible, aiSdkOpenAI } from "./ai-sdk.ts";
import type { Client, ClientOptions } from "./client.ts";
import { langchain } from "./langchain.ts";
import { openaiRaw, openaiStream } from "./openai-node.ts";

export interface ClientKind {
  readonly open: (options: ClientOptions) => Client;
  /** What its user catches, or is told of, when an answer breaks in the middle. */
  readonly brokenStream: new (
    ...args: never[]
  ) => Error;
  /** What its user catches when a request is refused. */
  readonly refusal: new (
    ...args: never[]
  ) => Error;
}

/** The clients that most callers of an OpenAI-compatible endpoint in JavaScript use. */
export const clients: Readonly<Record<string, ClientKind>> = {
  "openai-node raw": { open: openaiRaw, brokenStream: OpenAI.APIError, refusal: OpenAI.APIError },
  "openai-node .stream()": { open: openaiStream, brokenStream: OpenAI.APIError, refusal: OpenAI.APIError },
  "AI SDK openai-compatible": { open: aiSdkCompatible, brokenStream: AISDKError, refusal: APICallError },
  "AI SDK openai": { open: aiSdkOpenAI, brokenStream: AISDKError, refusal: APICallError },
  "LangChain.js": { open: langchain, brokenStream: OpenAI.APIError, refusal: OpenAI.APIError },
};

export function clientAt(name: string, options: ClientOptions): ClientKind & Client {
  const kind = clients[name];
  if (kind === undefined) throw new Error(`no client ${name}`);
  return { ...kind, ...kind.open(options) };
}
