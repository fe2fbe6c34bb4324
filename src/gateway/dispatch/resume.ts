import type { Backend, TextEvent } from "../../backends/backend.ts";
import { SluiceError } from "../../errors.ts";
import type { Run } from "./run.ts";

/**
 * How one backend would take a choice on, given what its caller has:
 *
 *   fresh    nothing was sent: the request as it is
 *   tokens   goes on behind the sent tokens; penalties, position, draws and grammar as if nothing had happened
 *   prefill  a text backend goes on behind the sent text, as an assistant message that is not finished
 *   restart  nobody has seen what was sent (`held`): it is forgotten and the answer begins anew
 *   replay   the whole answer anew, shown from where it goes beyond what was sent, as long as it begins with that
 */
export type Way = "fresh" | "tokens" | "prefill" | "restart" | "replay";

/** The best way on this backend, or why there is none: the backend's own objection to the request, or to continuing it. */
export function wayOn(backend: Backend, run: Run): Way | SluiceError {
  const { request, sent } = run;
  const objection = (generated?: string) =>
    backend.objection?.({ ...asked(run), text: { ...request.text, generated } });
  if (sent.nothing) return objection() ?? "fresh";
  if (backend.capabilities.tokenIds) {
    if (sent.hasText && request.held === true) return "restart";
    return sent.tokens() === undefined ? cannotContinue() : "tokens";
  }
  if (request.held === true) return objection() ?? "restart";
  const text = sent.text();
  if (text === undefined) return cannotContinue();
  const refuses = run.refusedPrefill.has(backend.id) || !backend.capabilities.assistantPrefill;
  if (!refuses && objection(text) === undefined) return "prefill";
  // A structured answer is not compared: calls and log probabilities come in other pieces each time.
  if (request.logprobs !== undefined) return cannotContinue();
  return objection() ?? "replay";
}

function asked({ request, choice }: Run) {
  return { sampling: { ...request.sampling, choice }, maxNewTokens: request.maxNewTokens };
}

function cannotContinue(): SluiceError {
  return new SluiceError({
    status: 502,
    type: "server_error",
    code: "cannot_continue",
    message: "cannot go on with an answer that was begun elsewhere",
    retryable: true,
  });
}

/** Of an answer that is told anew: what goes beyond the part that its caller has. */
export class Replay {
  #expected: string;

  constructor(sent: string) {
    this.#expected = sent;
  }

  /** All that was sent has been told again. */
  get caughtUp(): boolean {
    return this.#expected === "";
  }

  /** Undefined = nothing new. Throws SluiceError `replay_diverged` where it is another answer. */
  take(event: TextEvent): TextEvent | undefined {
    if (this.caughtUp) return event;
    const { delta } = event;
    const same = this.#expected.startsWith(delta) || delta.startsWith(this.#expected);
    const other = event.toolCalls !== undefined || event.refusal !== undefined;
    if (!same || other) throw diverged();
    const fresh = delta.slice(this.#expected.length);
    this.#expected = this.#expected.slice(delta.length);
    return fresh === "" ? undefined : { type: "text", delta: fresh };
  }

  finish(): void {
    if (!this.caughtUp) throw diverged();
  }
}

function diverged(): SluiceError {
  return new SluiceError({
    status: 502,
    type: "server_error",
    code: "replay_diverged",
    message: "A backend gave another answer than the one that was begun.",
    retryable: true,
  });
}
