import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { type Clock, systemClock } from "../../../src/clock.ts";
import { sendAnswer } from "./answers.ts";
import { type Fault, fullTimings, scenarioModels, scenarioOf, type Timings } from "./scenarios.ts";
import { errorBody } from "./wire.ts";

export type Body = Readonly<Record<string, unknown>>;

/** One request that reached a model, in the order of arrival. */
export interface UpstreamAttempt {
  readonly model: string;
  /** From 1, for this model. */
  readonly number: number;
  /** Milliseconds of the upstream's clock since it started or was reset. */
  readonly at: number;
  readonly path: string;
  readonly headers: IncomingMessage["headers"];
  readonly body: Body;
  /** Tokens of the answer handed to the socket so far. */
  sent: number;
  /** Resolves when the connection is gone: true when the client left before the answer's end. */
  readonly ended: Promise<{ readonly clientLeft: boolean; readonly at: number }>;
}

export interface UpstreamOptions {
  readonly timings?: Partial<Timings>;
  readonly clock?: Clock;
  /** Requests without it as bearer get OpenAI's 401, which repeats a part of what was sent. */
  readonly key?: string;
  /** Tells `max_model_len` in the list of models, as vLLM does. */
  readonly contextLength?: number;
  /** Takes vLLM's fields too; others get OpenAI's 400 for an unknown parameter. */
  readonly extensions?: boolean;
  /** The answer to a request with a `response_format`. */
  readonly json?: (format: Body) => string;
}

export interface Upstream {
  /** With `/v1`, as an endpoint is configured. */
  readonly url: string;
  readonly attempts: readonly UpstreamAttempt[];
  attemptsOn(model: string): readonly UpstreamAttempt[];
  /** The next attempt that arrives, or the first that nobody has awaited yet. */
  nextAttempt(): Promise<UpstreamAttempt>;
  /** Forgets attempts; the outage of S15 begins anew. */
  reset(): void;
  close(): Promise<void>;
}

const standardFields = new Set(
  (
    "model messages prompt stream stream_options n max_tokens max_completion_tokens temperature top_p stop seed " +
    "presence_penalty frequency_penalty logit_bias logprobs top_logprobs response_format tools tool_choice " +
    "parallel_tool_calls user metadata store service_tier echo best_of suffix"
  ).split(" "),
);
const extensionFields = new Set(
  (
    "top_k min_p repetition_penalty ignore_eos stop_token_ids bad_words structured_outputs chat_template_kwargs " +
    "continue_final_message add_generation_prompt"
  ).split(" "),
);

/**
 * An OpenAI-shaped endpoint on loopback whose faults are keyed on the model's name (scenarios.ts): chat and text
 * completions, streamed and whole, in the formats that such endpoints really send.
 */
export async function startUpstream(options: UpstreamOptions = {}): Promise<Upstream> {
  const clock = options.clock ?? systemClock;
  const timings: Timings = { ...fullTimings, ...options.timings };
  const closing = new AbortController();
  let startedAt = clock.now();
  let attempts: UpstreamAttempt[] = [];
  let unclaimed: UpstreamAttempt[] = [];
  let waiting: Array<(attempt: UpstreamAttempt) => void> = [];

  const server = createServer((request, response) => {
    request.socket.setNoDelay(true);
    serve(request, response).catch(() => response.destroy());
  });

  async function serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = request.url ?? "";
    if (options.key !== undefined && request.headers.authorization !== `Bearer ${options.key}`) {
      const given = request.headers.authorization ?? "";
      return refuse(
        response,
        401,
        {},
        `Incorrect API key provided: ${given.replace("Bearer ", "")}.`,
        "invalid_api_key",
      );
    }
    if (request.method === "GET" && path === "/v1/models") {
      const context = options.contextLength === undefined ? {} : { max_model_len: options.contextLength };
      const data = scenarioModels.map((id) => ({ id, object: "model", created: 0, owned_by: "mock", ...context }));
      return json(response, 200, { object: "list", data });
    }
    const completions = path === "/v1/completions";
    if (request.method !== "POST" || (!completions && path !== "/v1/chat/completions")) {
      return refuse(response, 404, {}, `Unknown request URL: ${request.method} ${path}.`, "unknown_url");
    }
    const body = await readBody(request);
    if (body === undefined) return refuse(response, 400, {}, "We could not parse the JSON body of your request.", null);
    const unknown = Object.keys(body).find(
      (name) => !standardFields.has(name) && !(options.extensions === true && extensionFields.has(name)),
    );
    if (unknown !== undefined) {
      return refuse(response, 400, {}, `Unknown parameter: '${unknown}'.`, "unknown_parameter", unknown);
    }
    const model = String(body.model);
    const attempt = record(model, path, request, response, body);
    const scenario = scenarioOf(model);
    if (scenario === undefined)
      return refuse(response, 404, {}, `The model \`${model}\` does not exist.`, "model_not_found");
    const last = Array.isArray(body.messages) ? body.messages.at(-1) : undefined;
    const fault = scenario({
      number: attempt.number,
      sinceStartMs: clock.now() - startedAt,
      prefilled: last?.role === "assistant",
      timings,
    });
    await meet(fault, attempt, response);
  }

  async function meet(fault: Fault, attempt: UpstreamAttempt, response: ServerResponse): Promise<void> {
    switch (fault.kind) {
      case "refuse": {
        const { status, headers = {}, error } = fault;
        if (typeof error === "string") response.writeHead(status, headers).end(error);
        else json(response, status, errorBody(error), headers);
        return;
      }
      case "reset":
        response.socket?.resetAndDestroy();
        return;
      case "silent":
        await sleep(fault.ms, response);
        response.destroy();
        return;
      case "answer":
        await sendAnswer({
          shape: fault.shape,
          attempt,
          response,
          sleep: (ms) => sleep(ms, response),
          tokenMs: timings.tokenMs,
          json: options.json ?? (() => '{"city": "Paris", "known": true}'),
        });
    }
  }

  /** Also ends when the client has left or the upstream closes; whoever writes afterwards writes into nothing. */
  async function sleep(ms: number, response: ServerResponse): Promise<void> {
    const gone = new AbortController();
    const leave = () => gone.abort();
    response.once("close", leave);
    await clock.sleep(ms, AbortSignal.any([gone.signal, closing.signal])).catch(() => {});
    response.off("close", leave);
  }

  function record(
    model: string,
    path: string,
    { headers }: IncomingMessage,
    response: ServerResponse,
    body: Body,
  ): UpstreamAttempt {
    const ended = once(response, "close").then(() => ({
      clientLeft: !response.writableEnded,
      at: clock.now() - startedAt,
    }));
    const number = attempts.filter((each) => each.model === model).length + 1;
    const attempt = { model, number, at: clock.now() - startedAt, path, headers, body, sent: 0, ended };
    attempts.push(attempt);
    const awaited = waiting.shift();
    if (awaited === undefined) unclaimed.push(attempt);
    else awaited(attempt);
    return attempt;
  }

  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  const port = typeof address === "object" && address !== null ? address.port : 0;
  return {
    url: `http://127.0.0.1:${port}/v1`,
    get attempts() {
      return attempts;
    },
    attemptsOn: (model) => attempts.filter((attempt) => attempt.model === model),
    nextAttempt() {
      const first = unclaimed.shift();
      if (first !== undefined) return Promise.resolve(first);
      return new Promise((resolve) => waiting.push(resolve));
    },
    reset() {
      startedAt = clock.now();
      attempts = [];
      unclaimed = [];
      waiting = [];
    },
    async close() {
      closing.abort();
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}

async function readBody(request: IncomingMessage): Promise<Body | undefined> {
  const parts: Uint8Array[] = [];
  for await (const part of request) parts.push(part);
  try {
    const value: unknown = JSON.parse(Buffer.concat(parts).toString("utf8"));
    return typeof value === "object" && value !== null ? (value as Body) : undefined;
  } catch {
    return undefined;
  }
}

function json(response: ServerResponse, status: number, body: unknown, headers: Record<string, string> = {}): void {
  response.writeHead(status, { "content-type": "application/json", ...headers }).end(JSON.stringify(body));
}

function refuse(
  response: ServerResponse,
  status: number,
  headers: Record<string, string>,
  message: string,
  code: string | null,
  param: string | null = null,
): void {
  json(response, status, errorBody({ message, type: "invalid_request_error", code, param }), headers);
}
