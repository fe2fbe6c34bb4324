/** Server-sent events as OpenAI sends them: `data` only, JSON on one line. */
export const eventStreamHeaders = {
  "content-type": "text/event-stream; charset=utf-8",
  "cache-control": "no-cache",
  // nginx would hold a stream back until its buffer is full.
  "x-accel-buffering": "no",
} as const;

export const sseEvent = (json: string): string => `data: ${json}\n\n`;
export const sseDone = "data: [DONE]\n\n";
/** A comment: keeps idle connections open and is no event to any client. */
export const ssePing = ": ping\n\n";
