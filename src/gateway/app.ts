import { type Context, Hono } from "hono";
import { asSluiceError, SluiceError, unavailable } from "../errors.ts";
import { inStage } from "../telemetry/spans.ts";
import { admit } from "./admit.ts";
import { type Answer, StreamedAnswer } from "./answer/streamed.ts";
import { WholeAnswer } from "./answer/whole.ts";
import { type Api, type Call, chatApi, completionApi } from "./api/call.ts";
import { errorBody, errorHeaders } from "./api/errors.ts";
import { modelBody, modelListBody } from "./api/models.ts";
import { authenticate } from "./authenticate.ts";
import type { Gateway, Services } from "./gateway.ts";
import { prepare, type ServedModel } from "./prepare.ts";
import { receive } from "./receive.ts";
import { relay } from "./relay.ts";
import type { TenantEntry } from "./tenants/directory.ts";
import { Visit } from "./visit.ts";

/**
 * The gateway's routes, and the way of one request through its stages:
 *
 *   authenticate -> receive -> prepare -> admit -> [ route -> dispatch ] -> relay -> settle
 *
 * The key is checked on the head of the request, before its body is read: a stranger costs one hash. `route` and
 * `dispatch` run inside `relay`'s pull on the dispatcher.
 */
export function createApp(gateway: Gateway): Hono {
  const app = new Hono();
  app.post("/v1/chat/completions", (c) => generate(gateway, c, chatApi));
  app.post("/v1/completions", (c) => generate(gateway, c, completionApi));
  app.get("/v1/models", (c) => models(gateway, c, undefined));
  // Names of models may hold slashes.
  app.get("/v1/models/:id{.+}", (c) => models(gateway, c, c.req.param("id")));
  app.get("/healthz", () => json(200, { status: "ok" }));
  app.get("/readyz", () => readiness(gateway));
  app.get("/metrics", async () => {
    const { registry } = gateway.metrics;
    return new Response(await registry.metrics(), { headers: { "content-type": registry.contentType } });
  });
  app.notFound((c) => failure(routeNotFound(c.req.method, c.req.path)));
  app.onError((error) => failure(asSluiceError(error)));
  return app;
}

async function generate<Body>(gateway: Gateway, c: Context, api: Api<Body>): Promise<Response> {
  const exchange = gateway.platform.exchange(c);
  const visit = new Visit(gateway, exchange, api.name);
  const { services, trace, receivedAt } = visit;
  const { platform, metrics } = gateway;
  try {
    if (gateway.draining) throw unavailable("draining", "The gateway is shutting down.", { retryAfterMs: 1_000 });
    const entry = await inStage(trace, "authenticate", () => authenticate(exchange, platform, services.directory));
    const leave = visit.enter(entry);
    const { dispatcher } = services;
    const { call, model, requests } = await understand(visit, api, entry);
    visit.admitted(await inStage(trace, "admit", () => admit(entry, requests, leave)));
    metrics.overhead.labels(model.name).observe((platform.clock.now() - receivedAt) / 1000);

    const { name } = model;
    const interToken = metrics.interToken.labels(name);
    const answer = open(gateway, visit, call, model);
    const span = trace.stage("relay");
    visit.relaying();
    const done = relay({
      requests,
      answer,
      dispatcher,
      tokenizer: model.tokenizer,
      tools: toolNames(call),
      clock: platform.clock,
      caller: exchange.signal,
      shutdown: gateway.shutdown.signal,
      trace,
      observe: {
        firstToken: () => metrics.firstToken.labels(name).observe((platform.clock.now() - receivedAt) / 1000),
        retried: (resumed) => metrics.retried.inc({ model: name, when: resumed ? "resumed" : "unseen" }),
        tokens: (ms, count) => interToken.observe(ms / 1000 / count),
      },
    }).then((outcome) => {
      if (answer instanceof StreamedAnswer) gateway.heartbeat.delete(answer);
      span.end();
      visit.settle(outcome, answer.committed);
    });
    exchange.background(done);
    return await answer.response;
  } catch (thrown) {
    const error = asSluiceError(thrown);
    visit.refuse(error);
    return failure(error, visit.headers);
  }
}

/** The stages that hold a caller's text: bounded together by what its tenant may have waiting in bytes. */
async function understand<Body>(visit: Visit, api: Api<Body>, entry: TenantEntry) {
  const { services, exchange, trace } = visit;
  const { bounds, compat } = services.config;
  const { gate, limits } = entry;
  const release = gate.hold(limits, Math.min(exchange.declaredBytes ?? bounds.bodyBytes, bounds.bodyBytes));
  try {
    const call = await inStage(trace, "receive", () =>
      receive(exchange, api, { bodyBytes: bounds.bodyBytes, unknownFields: compat.unknownFields }),
    );
    const model = findModel(services, entry, call.model);
    visit.asks(call, model);
    const requests = await inStage(trace, "prepare", () =>
      gate.prepare(limits, exchange.signal, () =>
        prepare({
          id: visit.id,
          receivedAt: visit.receivedAt,
          call,
          entry,
          model,
          info: services.dispatcher.info(model.name),
          traceparent: trace.traceparent,
          signal: exchange.signal,
        }),
      ),
    );
    return { call, model, requests };
  } finally {
    release();
  }
}

function open(gateway: Gateway, visit: Visit, call: Call, model: ServedModel): Answer {
  const { vocabulary } = model.tokenizer;
  const created = Math.floor(gateway.platform.clock.wall() / 1000);
  const head = (upstreamModel: string | undefined) => ({
    id: call.format.idPrefix + visit.id,
    created,
    model: upstreamModel ?? model.name,
  });
  if (!call.stream) {
    return new WholeAnswer({
      exchange: visit.exchange,
      headers: visit.headers,
      choices: call.n * call.prompts.length,
      body: (upstreamModel, choices, usage) => call.format.whole(head(upstreamModel), vocabulary, choices, usage),
    });
  }
  const answer = new StreamedAnswer({
    exchange: visit.exchange,
    clock: gateway.platform.clock,
    headers: visit.headers,
    includeUsage: call.includeUsage,
    bufferBytes: visit.services.config.stream.bufferBytes,
    format: (upstreamModel) => call.format.stream(head(upstreamModel), vocabulary, { includeUsage: call.includeUsage }),
  });
  gateway.heartbeat.add(answer);
  return answer;
}

const toolNames = ({ toolUse }: Call): ReadonlySet<string> =>
  new Set(toolUse === undefined || toolUse.choice === "none" ? [] : toolUse.tools.map((tool) => tool.function.name));

/** A model that the tenant may not use does not exist for it: its name is nobody else's business. */
function checkName({ config }: Services, { tenant }: TenantEntry, name: string): void {
  const allowed = tenant.models === undefined || tenant.models.has(name);
  if (allowed && Object.hasOwn(config.models, name)) return;
  throw new SluiceError({
    status: 404,
    type: "invalid_request_error",
    code: "model_not_found",
    message: `The model '${name.slice(0, 128)}' does not exist or you do not have access to it.`,
    param: "model",
  });
}

function findModel(services: Services, entry: TenantEntry, name: string): ServedModel {
  checkName(services, entry, name);
  const model = services.models.get(name);
  if (model !== undefined) return model;
  throw new SluiceError({
    status: 501,
    type: "server_error",
    code: "not_available_here",
    message: "This gateway knows the model but has no way to its backends on this platform.",
    param: "model",
  });
}

async function models(gateway: Gateway, c: Context, id: string | undefined): Promise<Response> {
  try {
    const { platform, services } = gateway;
    const entry = await authenticate(platform.exchange(c), platform, services.directory);
    const created = Math.floor(gateway.startedAt / 1000);
    if (id !== undefined) {
      checkName(services, entry, id);
      return json(200, modelBody(id, created));
    }
    const { models: allowed } = entry.tenant;
    const names = Object.keys(services.config.models).filter((name) => allowed === undefined || allowed.has(name));
    return json(200, modelListBody(names, created));
  } catch (error) {
    return failure(asSluiceError(error));
  }
}

function readiness(gateway: Gateway): Response {
  if (gateway.draining) return json(503, { status: "draining" });
  return gateway.services.dispatcher.ready()
    ? json(200, { status: "ready" })
    : json(503, { status: "no backend is ready" });
}

const json = (status: number, body: unknown): Response =>
  new Response(JSON.stringify(body), { status, headers: { "content-type": "application/json" } });

const failure = (error: SluiceError, headers: Readonly<Record<string, string>> = {}): Response =>
  new Response(errorBody(error), { status: error.status, headers: { ...headers, ...errorHeaders(error) } });

const routeNotFound = (method: string, path: string): SluiceError =>
  new SluiceError({
    status: 404,
    type: "invalid_request_error",
    code: "unknown_url",
    message: `Unknown request URL: ${method} ${path.slice(0, 256)}.`,
  });
