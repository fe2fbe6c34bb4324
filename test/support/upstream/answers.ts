import type { ServerResponse } from "node:http";
import { constants, createGzip } from "node:zlib";
import type { AnswerShape } from "./scenarios.ts";
import type { Body, UpstreamAttempt } from "./server.ts";
import * as wire from "./wire.ts";

export interface AnswerInput {
  readonly shape: AnswerShape;
  readonly attempt: UpstreamAttempt;
  readonly response: ServerResponse;
  readonly sleep: (ms: number) => Promise<void>;
  readonly tokenMs: number;
  readonly json: (format: Body) => string;
}

/** Answers one request in the given shape, streamed or whole as it asks. Returns when all is sent or the client has left. */
export async function sendAnswer(input: AnswerInput): Promise<void> {
  const plan = planOf(input);
  if (plan.wants.stream) await sendStream(input, plan);
  else await sendWhole(input, plan);
}

interface Plan {
  readonly wants: { readonly stream: boolean; readonly usage: boolean };
  readonly wire: wire.Wire;
  readonly deltas: readonly wire.WireDelta[];
  readonly text: string;
  readonly finish: string;
  readonly usage: (completionTokens: number) => wire.WireUsage;
}

function planOf({ attempt, shape, json }: AnswerInput): Plan {
  const { body, model, path } = attempt;
  const chat = path.endsWith("/chat/completions");
  const call = chat ? forcedCall(body) : undefined;
  const text = call === undefined ? answerText(body, chat, shape, json) : "";
  const options = record(body.stream_options);
  const stream = body.stream === true;
  const usage = options?.include_usage === true;
  const logprobs = chat
    ? body.logprobs === true
      ? Number(body.top_logprobs ?? 0)
      : undefined
    : typeof body.logprobs === "number"
      ? body.logprobs
      : undefined;
  return {
    wants: { stream, usage },
    wire: {
      kind: chat ? "chat" : "completion",
      id: `${chat ? "chatcmpl" : "cmpl"}-mock-${attempt.number}`,
      model,
      logprobs: shape.forgetsLogprobs === true ? undefined : logprobs,
      includeUsage: stream && usage,
    },
    deltas: call ?? wire.tokensOfText(text).map((content) => ({ content })),
    text,
    // OpenAI says `stop` where the call was forced by name.
    finish: shape.finish ?? (call === undefined || record(body.tool_choice) !== undefined ? "stop" : "tool_calls"),
    usage: (completionTokens) => wire.usageFor(promptTokens(body), completionTokens),
  };
}

function answerText(body: Body, chat: boolean, shape: AnswerShape, json: AnswerInput["json"]): string {
  const format = record(body.response_format);
  if (format !== undefined && format.type !== "text") return json(format);
  const words = wire.tokensOfText(wire.canonicalAnswer);
  const count = shape.tokens ?? words.length;
  const whole = Array.from({ length: count }, (_, index) => words[index] ?? ` word${index}`).join("");
  return whole.slice(sentBefore(body, chat, whole));
}

/** How much of the answer the request brings along: a last assistant message, or the end of a prompt. */
function sentBefore(body: Body, chat: boolean, whole: string): number {
  if (chat) {
    const last = record(Array.isArray(body.messages) ? body.messages.at(-1) : undefined);
    const prefix = last?.role === "assistant" && typeof last.content === "string" ? last.content : "";
    return whole.startsWith(prefix) ? prefix.length : 0;
  }
  const prompt = typeof body.prompt === "string" ? body.prompt : "";
  for (let length = whole.length; length > 0; length--) if (prompt.endsWith(whole.slice(0, length))) return length;
  return 0;
}

/** A call in pieces, as OpenAI streams it, where the request leaves no choice but to call. */
function forcedCall(body: Body): wire.WireDelta[] | undefined {
  const tools = Array.isArray(body.tools) ? body.tools : [];
  const named = record(record(body.tool_choice)?.function)?.name;
  if (tools.length === 0 || (body.tool_choice !== "required" && named === undefined)) return undefined;
  const name = named ?? record(record(tools[0])?.function)?.name;
  const first = { index: 0, id: "call_mock_1", type: "function", function: { name, arguments: "" } };
  const pieces = ['{"ci', 'ty": "Par', 'is"}'].map((args) => ({ index: 0, function: { arguments: args } }));
  return [first, ...pieces].map((piece) => ({ tool_calls: [piece] }));
}

function promptTokens(body: Body): number {
  const texts = Array.isArray(body.messages) ? body.messages.map((message) => record(message)?.content) : [body.prompt];
  return texts.reduce<number>((sum, text) => sum + 4 + String(text ?? "").split(/\s+/).length, 0);
}

async function sendStream(input: AnswerInput, plan: Plan): Promise<void> {
  const { shape, attempt, response, sleep, tokenMs } = input;
  const out = openStream(response, shape.gzip === true);
  const chunk = (delta: wire.WireDelta, finish: string | null = null, usage?: wire.WireUsage) =>
    out.write(wire.sse(wire.chunk(plan.wire, delta, finish, usage)));
  if (shape.firstTokenAfterMs !== undefined) await sleep(shape.firstTokenAfterMs);
  if (plan.wire.kind === "chat") chunk({ role: "assistant", content: "" });
  for (const [index, delta] of plan.deltas.entries()) {
    if (response.destroyed) return;
    if (shape.error?.afterTokens === index && failInBand(shape.error, plan, out)) return;
    if (shape.cut?.afterTokens === index) return cut(shape.cut, response, out, sleep);
    const running = shape.usage === "running" ? plan.usage(index + 1) : undefined;
    chunk(delta, null, running);
    attempt.sent++;
    if (shape.garbageAfterToken === index + 1) out.write('data: {"choices":[{"delta":{"content": \n\n');
    if (tokenMs > 0) await sleep(tokenMs);
  }
  const usage = plan.usage(plan.deltas.length);
  const withFinish = shape.usage === "finish" || shape.usage === "running";
  chunk({}, plan.finish, withFinish ? usage : undefined);
  if (plan.wants.usage && (shape.usage ?? "own") === "own") out.write(wire.sse(wire.usageChunk(plan.wire, usage)));
  if (shape.done !== false) out.write(wire.doneEvent);
  if (shape.lingers !== true) out.end();
}

interface Out {
  write(text: string): void;
  /** A proper end of the body. */
  end(): void;
  /** A proper end of what HTTP carries, in the middle of what it carries. */
  breakOff(): void;
}

function openStream(response: ServerResponse, compressed: boolean): Out {
  const encoding = compressed ? { "content-encoding": "gzip" } : {};
  response.writeHead(200, {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    ...encoding,
  });
  response.flushHeaders();
  if (!compressed) {
    return {
      write: (text) => void response.write(text),
      end: () => void response.end(),
      breakOff: () => void response.end(),
    };
  }
  const gzip = createGzip({ flush: constants.Z_SYNC_FLUSH });
  gzip.on("data", (bytes: Uint8Array) => response.write(bytes));
  gzip.on("end", () => response.end());
  return {
    write: (text) => void gzip.write(text),
    end: () => void gzip.end(),
    breakOff: () => gzip.flush(() => response.end()),
  };
}

function failInBand(fault: NonNullable<AnswerShape["error"]>, plan: Plan, out: Out): true {
  const body = wire.errorBody(fault.error);
  if (fault.form === "choices") {
    out.write(wire.sse({ ...wire.chunk(plan.wire, { content: "" }, "error"), ...body }));
    // Aggregators end such a stream as if nothing had happened.
    out.write(wire.doneEvent);
  } else out.write(`${fault.form === "event" ? "event: error\n" : ""}${wire.sse(body)}`);
  out.end();
  return true;
}

async function cut(
  { how, ms = 0 }: NonNullable<AnswerShape["cut"]>,
  response: ServerResponse,
  out: Out,
  sleep: AnswerInput["sleep"],
): Promise<void> {
  if (how === "silent") await sleep(ms);
  if (how === "clean") out.breakOff();
  else if (how === "reset") response.socket?.resetAndDestroy();
  else response.socket?.end();
}

async function sendWhole(input: AnswerInput, plan: Plan): Promise<void> {
  const { shape, attempt, response, sleep, tokenMs } = input;
  await sleep((shape.firstTokenAfterMs ?? 0) + tokenMs * plan.deltas.length);
  if (response.destroyed) return;
  const { error, cut: cutAt } = shape;
  if (error !== undefined) {
    response.writeHead(500, { "content-type": "application/json" }).end(JSON.stringify(wire.errorBody(error.error)));
    return;
  }
  const answer = wire.whole(plan.wire, plan.text, plan.finish, plan.usage(plan.deltas.length));
  const text =
    shape.garbageAfterToken === undefined ? JSON.stringify(answer) : `${JSON.stringify(answer).slice(0, 300)}"oops`;
  const bytes = new TextEncoder().encode(text);
  attempt.sent = plan.deltas.length;
  response.writeHead(200, { "content-type": "application/json", "content-length": bytes.byteLength });
  if (cutAt === undefined) {
    response.end(bytes);
    return;
  }
  response.write(bytes.subarray(0, Math.floor(bytes.byteLength * 0.6)));
  // A body of a stated length has no proper end before it.
  const how = cutAt.how === "clean" ? "fin" : cutAt.how;
  await cut({ ...cutAt, how }, response, { write() {}, end() {}, breakOff() {} }, sleep);
}

function record(value: unknown): Body | undefined {
  return typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Body) : undefined;
}
