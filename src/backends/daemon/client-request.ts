import { SluiceError } from "../../errors.ts";
import type { GenerationRequest } from "../backend.ts";
import type { GenerateBody } from "./protocol.ts";

/** Token arrays dominate the body; joining them is several times cheaper than stringifying a copied array. */
export function requestBody(request: GenerationRequest, stream?: GenerateBody["stream"]): string {
  const rest: Omit<GenerateBody, "promptIds" | "generatedIds"> = {
    id: request.id,
    maxNewTokens: request.maxNewTokens,
    sampling: {
      ...request.sampling,
      logitBias: request.sampling.logitBias.map(([token, bias]) => [token, bias]),
      bannedSequences: [...request.sampling.bannedSequences],
    },
    stopIds: [...request.stopIds],
    salt: request.salt,
    priority: request.priority,
    deadlineMs: request.deadlineMs,
    ...(request.grammar === undefined ? {} : { grammar: request.grammar.artifact.hash }),
    ...(request.logprobs === undefined ? {} : { logprobs: request.logprobs }),
    ...(request.traceparent === undefined ? {} : { traceparent: request.traceparent }),
    ...(stream === undefined ? {} : { stream }),
  };
  const ids = `"promptIds":[${request.promptIds.join(",")}],"generatedIds":[${request.generatedIds.join(",")}]`;
  return `{${ids},${JSON.stringify(rest).slice(1)}`;
}

/** What an aborted call rejects with: the signal's reason where that says enough. */
export function abortError(signal: AbortSignal): SluiceError {
  const reason: unknown = signal.reason;
  if (reason instanceof SluiceError) return reason;
  return new SluiceError({
    status: 499,
    type: "invalid_request_error",
    code: "cancelled",
    message: "The request was cancelled.",
    cause: reason,
  });
}
