import type { Usage } from "../../backends/backend.ts";
import type { SluiceError } from "../../errors.ts";
import type { AnswerFinish, WholeChoice } from "../api/answer.ts";
import type { Exchange } from "../platform/platform.ts";
import type { Delta } from "./choice.ts";
import type { Answer } from "./streamed.ts";

export interface WholeOptions {
  readonly exchange: Pick<Exchange, "send">;
  readonly headers: Readonly<Record<string, string>>;
  readonly choices: number;
  readonly body: (upstreamModel: string | undefined, choices: readonly WholeChoice[], usage: Usage) => string;
}

/** An answer sent at once: its status waits until it is complete, so every failure has one of its own. */
export class WholeAnswer implements Answer {
  readonly response: Promise<Response>;
  readonly committed = false;
  readonly #options: WholeOptions;
  readonly #resolve: (response: Response) => void;
  readonly #reject: (error: SluiceError) => void;
  readonly #choices: Array<{ readonly index: number; deltas: Delta[]; finish: AnswerFinish }>;
  #pool: string | undefined;
  #upstreamModel: string | undefined;

  constructor(options: WholeOptions) {
    const { promise, resolve, reject } = Promise.withResolvers<Response>();
    this.response = promise;
    this.#resolve = resolve;
    this.#reject = reject;
    this.#options = options;
    this.#choices = Array.from({ length: options.choices }, (_, index) => ({ index, deltas: [], finish: "stop" }));
  }

  from(pool: string, upstreamModel: string | undefined): void {
    this.#pool = pool;
    this.#upstreamModel = upstreamModel;
  }

  delta(index: number, delta: Delta): void {
    this.#choices[index]?.deltas.push(delta);
  }

  restart(index: number): void {
    const choice = this.#choices[index];
    if (choice !== undefined) choice.deltas = [];
  }

  finish(index: number, reason: AnswerFinish): void {
    const choice = this.#choices[index];
    if (choice !== undefined) choice.finish = reason;
  }

  complete(usage: Usage): void {
    const body = this.#options.body(this.#upstreamModel, this.#choices, usage);
    const headers: Record<string, string> = { "content-type": "application/json", ...this.#options.headers };
    if (this.#pool !== undefined) headers["x-sluice-pool"] = this.#pool;
    this.#resolve(this.#options.exchange.send(200, headers, body));
  }

  fail(error: SluiceError): void {
    this.#reject(error);
  }

  abandon(error: SluiceError): void {
    this.#reject(error);
  }
}
