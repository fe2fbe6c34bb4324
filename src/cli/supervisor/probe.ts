import { setTimeout as delay } from "node:timers/promises";
import { request } from "undici";
import { CommandError } from "../exit.ts";

export interface Target {
  readonly url: string;
  readonly key: string;
  readonly model: string;
}

const patienceMs = 60_000;

/** Asks for one token over HTTP until it comes: everything between the socket and the kernel works then. */
export async function firstAnswer(target: Target, signal: AbortSignal): Promise<void> {
  const started = performance.now();
  for (let pause = 50; ; pause = Math.min(1_000, pause * 2)) {
    const fault = await ask(target, signal);
    if (fault === undefined) return;
    if (performance.now() - started > patienceMs) {
      throw new CommandError(`No token came out of ${target.model} within ${patienceMs / 1000} s: ${fault}`);
    }
    await delay(pause, undefined, { signal });
  }
}

/** undefined when a token came, else why not. */
async function ask({ url, key, model }: Target, signal: AbortSignal): Promise<string | undefined> {
  try {
    // Asked first, so that a healthy start leaves no refused request in the log.
    const ready = await request(`${url}/readyz`, { signal });
    const state = await ready.body.text();
    if (ready.statusCode !== 200) return `${ready.statusCode} ${state.slice(0, 500)}`;
    const answer = await request(`${url}/v1/chat/completions`, {
      method: "POST",
      headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
      body: JSON.stringify({ model, messages: [{ role: "user", content: "Hi" }], max_tokens: 1 }),
      signal: AbortSignal.any([signal, AbortSignal.timeout(patienceMs)]),
    });
    const body = await answer.body.text();
    return answer.statusCode === 200 ? undefined : `${answer.statusCode} ${body.slice(0, 500)}`;
  } catch (error) {
    signal.throwIfAborted();
    return error instanceof Error ? error.message : String(error);
  }
}
