import type { SluiceError } from "../errors.ts";
import type { RequestTrace } from "../telemetry/spans.ts";
import type { Lease } from "./admit.ts";
import type { Call } from "./api/call.ts";
import type { Gateway, Services } from "./gateway.ts";
import type { Exchange } from "./platform/platform.ts";
import type { ServedModel } from "./prepare.ts";
import type { Outcome } from "./request.ts";
import { settle } from "./settle.ts";
import type { TenantEntry } from "./tenants/directory.ts";

/** One request's stay: what has become known of it so far, so that it can be settled from wherever it ends. */
export class Visit {
  /** Unique; the caller sees it in `x-request-id` and in the answer's id, the operator in the log. */
  readonly id = crypto.randomUUID().replaceAll("-", "");
  readonly receivedAt: number;
  readonly trace: RequestTrace;
  readonly exchange: Exchange;
  /** Of the configuration that was in force when it began. */
  readonly services: Services;
  readonly headers: Readonly<Record<string, string>>;
  readonly #gateway: Gateway;
  readonly #api: Call["api"];
  #tenant: string | undefined;
  #model: string | undefined;
  #stream = false;
  #leave: (() => void) | undefined;
  #lease: Lease | undefined;
  #relaying = false;
  #settled = false;

  constructor(gateway: Gateway, exchange: Exchange, api: Call["api"]) {
    this.#gateway = gateway;
    this.#api = api;
    this.exchange = exchange;
    this.services = gateway.services;
    this.receivedAt = gateway.platform.clock.now();
    this.trace = gateway.tracing.request(`POST ${api}`, (name) => exchange.header(name));
    this.headers = { "x-request-id": this.id };
    gateway.begin();
  }

  /** Takes one of the tenant's places. Throws 429. */
  enter(entry: TenantEntry): () => void {
    this.#tenant = entry.tenant.name;
    this.#leave = entry.gate.enter(entry.limits);
    this.trace.set({ "sluice.tenant": entry.tenant.name });
    return this.#leave;
  }

  asks(call: Call, model: ServedModel): void {
    this.#model = model.name;
    this.#stream = call.stream;
    this.trace.set({ "gen_ai.request.model": model.name, "sluice.stream": call.stream, "sluice.choices": call.n });
  }

  admitted(lease: Lease): void {
    this.#lease = lease;
  }

  /** From here on `settle` ends it. */
  relaying(): void {
    this.#relaying = true;
  }

  /** Its answer is over, well or not. `committed`: the caller has had a 200, whatever happened then. */
  settle(outcome: Outcome, committed: boolean): void {
    this.#end(committed ? 200 : (outcome.error?.status ?? 200), outcome, outcome.error);
  }

  /** It ended before there was an answer. */
  refuse(error: SluiceError): void {
    // An answer that failed is settled by its own outcome, which knows more; it comes a moment later.
    if (!this.#relaying) this.#end(error.status, undefined, error);
  }

  #end(status: number, outcome: Outcome | undefined, error: SluiceError | undefined): void {
    if (this.#settled) return;
    this.#settled = true;
    settle(this.#gateway, {
      id: this.id,
      api: this.#api,
      receivedAt: this.receivedAt,
      trace: this.trace,
      tenant: this.#tenant,
      model: this.#model,
      stream: this.#stream,
      status,
      lease: this.#lease,
      leave: this.#leave,
      outcome,
      error,
    });
  }
}
