import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { openTokenizer } from "../../src/tokenizer/node.ts";
import { answerOf, modelName, stepMs, tokensInAnswer } from "./workload.ts";

/**
 * An engine that speaks the OpenAI API, as far as gateways look: the answer whole, all its chunks in one write, or one
 * chunk a step for all running answers at once, which is how a batching engine gives them. A process of its own; told
 * by message whether to pace. `node text-upstream.ts TOKENIZER`
 */
const { pieces } = answerOf(await openTokenizer(process.argv[2] ?? ""));
const head = '"id":"chatcmpl-0123456789abcdef0123456789abcdef","created":1790000000';
const chunk = (delta: object, finish: string | null): string =>
  `data: {${head},"object":"chat.completion.chunk","model":"${modelName}","choices":[${JSON.stringify({
    index: 0,
    delta,
    logprobs: null,
    finish_reason: finish,
  })}]}\n\n`;
const usage = `"usage":{"prompt_tokens":220,"completion_tokens":${tokensInAnswer},"total_tokens":${220 + tokensInAnswer}}`;
const usageChunk = `data: {${head},"object":"chat.completion.chunk","model":"${modelName}","choices":[],${usage}}\n\n`;
const opening = chunk({ role: "assistant", content: "" }, null);
const chunks = pieces.map((content) => chunk({ content }, null));
const closing = (withUsage: boolean): string => `${chunk({}, "stop")}${withUsage ? usageChunk : ""}data: [DONE]\n\n`;
const message = JSON.stringify({ role: "assistant", content: pieces.join(""), refusal: null });
const whole = `{${head},"object":"chat.completion","model":"${modelName}","choices":[{"index":0,"message":${message},"logprobs":null,"finish_reason":"stop"}],${usage}}`;

let paced = false;
const running = new Map<ServerResponse, { next: number; readonly withUsage: boolean }>();

/** Steps while anything runs, on a grid: a late step is not made up for by a later one. */
async function step(): Promise<void> {
  let at = performance.now();
  while (running.size > 0) {
    at = Math.max(at + stepMs, performance.now());
    await sleep(at - performance.now());
    for (const [response, answer] of running) {
      const text = chunks[answer.next++] ?? "";
      if (answer.next < chunks.length) {
        response.write(answer.next === 1 ? opening + text : text);
      } else {
        running.delete(response);
        response.end(text + closing(answer.withUsage));
      }
    }
  }
}

const server = createServer({ noDelay: true, keepAliveTimeout: 600_000 }, (request, response) => {
  if (request.method !== "POST") return probe(request.url ?? "/", response);
  let body = "";
  request.setEncoding("utf8").on("data", (text: string) => {
    body += text;
  });
  request.on("end", () => {
    if (!body.includes('"stream":true')) {
      response.writeHead(200, { "content-type": "application/json", "content-length": Buffer.byteLength(whole) });
      response.end(whole);
      return;
    }
    const withUsage = body.includes('"include_usage":true');
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-cache" });
    if (!paced) {
      response.end(opening + chunks.join("") + closing(withUsage));
      return;
    }
    response.flushHeaders();
    response.once("close", () => running.delete(response));
    running.set(response, { next: 0, withUsage });
    if (running.size === 1) void step();
  });
});

/** What routers ask an engine before they trust it: SGLang's and vLLM's routes. */
function probe(url: string, response: ServerResponse): void {
  const bodies: Record<string, unknown> = {
    "/v1/models": {
      object: "list",
      data: [{ id: modelName, object: "model", owned_by: "bench", max_model_len: 8192 }],
    },
    "/get_model_info": { model_path: modelName, is_generation: true },
    "/model_info": { model_path: modelName, is_generation: true },
    "/get_server_info": { model_path: modelName, served_model_name: modelName },
    "/server_info": { model_path: modelName, served_model_name: modelName },
    "/version": { version: "0.14.0" },
  };
  const healthy = url === "/health" || url === "/health_generate";
  const body = bodies[url];
  response.writeHead(healthy || body !== undefined ? 200 : 404, { "content-type": "application/json" });
  response.end(body === undefined ? "" : JSON.stringify(body));
}

process.on("message", (told: { readonly paced: boolean }) => {
  paced = told.paced;
  process.send?.({ ok: true });
});
process.once("disconnect", () => process.exit());
server.listen(0, "127.0.0.1", () => {
  process.send?.({ url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` });
});
