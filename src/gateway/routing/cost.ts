import type { Load } from "./ledger.ts";
import type { Rates } from "./rates.ts";

export interface CostInput {
  readonly load: Load;
  readonly rates: Rates;
  /** Prompt tokens this backend would have to compute; at least 1, since the last one is never cached. */
  readonly uncachedTokens: number;
  /** Tokens this answer is expected to have. */
  readonly expectedTokens: number;
}

/**
 * Weight of a request's own uncached tokens against those already waiting. Computing them also delays whoever comes after,
 * which the queue's length alone does not show, so they count twice.
 */
export const beta = 2;

/** Answers are shorter than their limits; beyond this the neighbours have changed anyway. */
const maxExpectedTokens = 64;

/**
 * Predicted milliseconds until this answer has been served:
 *   (pending prefill tokens + beta * uncached tokens) / prefill rate + active rows * ms a row adds * expected tokens
 * The form is the one of vLLM RFC #20962: prefill is serial work before the first token, decode a toll for each token.
 */
export function predictMs({ load, rates, uncachedTokens, expectedTokens }: CostInput): number {
  const prefill = (load.pendingPrefillTokens + beta * uncachedTokens) / rates.prefillRate;
  const decode = load.activeRows * rates.decodeMsPerRow * Math.min(expectedTokens, maxExpectedTokens);
  return prefill + decode;
}

/** Milliseconds to compute a prompt's own tokens, with nothing before them. */
export function predictPrefillMs({ prefillRate }: Rates, uncachedTokens: number): number {
  return uncachedTokens / prefillRate;
}
