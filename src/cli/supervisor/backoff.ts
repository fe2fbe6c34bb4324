/** When to start a process again that died. Pure, so that a table can test it. */

export interface RestartPolicy {
  /** Wait before the first restart, milliseconds; doubles with each further death in the window. */
  readonly firstMs: number;
  readonly maxMs: number;
  /** More deaths than this inside the window: give up, since the cause will not go away by itself. */
  readonly maxDeaths: number;
  readonly windowMs: number;
}

export const restartPolicy: RestartPolicy = { firstMs: 250, maxMs: 10_000, maxDeaths: 5, windowMs: 60_000 };

/**
 * @param deaths moments of all deaths so far, the last one included, milliseconds, ascending
 * @returns the wait before the next start, or `give_up`
 */
export function nextRestart(
  deaths: readonly number[],
  policy: RestartPolicy = restartPolicy,
): { readonly waitMs: number } | "give_up" {
  const last = deaths.at(-1) ?? 0;
  const recent = deaths.filter((at) => last - at < policy.windowMs).length;
  if (recent > policy.maxDeaths) return "give_up";
  return { waitMs: Math.min(policy.maxMs, policy.firstMs * 2 ** Math.max(0, recent - 1)) };
}
