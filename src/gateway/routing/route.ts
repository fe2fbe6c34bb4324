import { predictMs } from "./cost.ts";
import type { Load } from "./ledger.ts";
import type { Rates } from "./rates.ts";

export interface Candidate {
  readonly id: string;
  /** Why it cannot take this request; it is listed and never chosen. */
  readonly excluded: string | undefined;
  readonly matchedBlocks: number;
  readonly load: Load;
  readonly rates: Rates;
}

export interface RouteInput {
  readonly promptTokens: number;
  readonly blockSize: number;
  readonly expectedTokens: number;
  /** The same for requests that share a prefix: where nothing else decides, it does, on every gateway alike. */
  readonly affinityKey: number;
  readonly candidates: readonly Candidate[];
}

export interface Ranked {
  readonly backend: string;
  readonly predictedMs: number;
  readonly matchedBlocks: number;
  readonly pendingPrefillTokens: number;
  readonly excluded?: string;
}

/** Costs this close are a draw: learned rates of equal machines differ by noise. */
const drawMs = 1;
const drawShare = 0.05;

/**
 * Candidates, best first, the excluded ones last. Pure: the same values give the same order.
 * Among draws the longer cached prefix wins, then the shorter row count, then rendezvous hashing of the affinity key, so
 * that an idle fleet spreads prefixes instead of filling its first backend.
 */
export function rank(input: RouteInput): Ranked[] {
  const scored = input.candidates.map((candidate) => ({
    candidate,
    predictedMs: predictMs({
      load: candidate.load,
      rates: candidate.rates,
      uncachedTokens: uncachedTokens(input, candidate.matchedBlocks),
      expectedTokens: input.expectedTokens,
    }),
  }));
  const open = scored.filter(({ candidate }) => candidate.excluded === undefined);
  const least = Math.min(...open.map(({ predictedMs }) => predictedMs));
  const isDraw = (cost: number) => cost <= least * (1 + drawShare) + drawMs;
  return scored
    .toSorted((a, b) => {
      const excluded = Number(a.candidate.excluded !== undefined) - Number(b.candidate.excluded !== undefined);
      if (excluded !== 0) return excluded;
      if (!isDraw(a.predictedMs) || !isDraw(b.predictedMs)) return a.predictedMs - b.predictedMs;
      return (
        b.candidate.matchedBlocks - a.candidate.matchedBlocks ||
        a.candidate.load.activeRows - b.candidate.load.activeRows ||
        rendezvous(input.affinityKey, a.candidate.id) - rendezvous(input.affinityKey, b.candidate.id)
      );
    })
    .map(({ candidate, predictedMs }) => ({
      backend: candidate.id,
      predictedMs,
      matchedBlocks: candidate.matchedBlocks,
      pendingPrefillTokens: candidate.load.pendingPrefillTokens,
      ...(candidate.excluded === undefined ? {} : { excluded: candidate.excluded }),
    }));
}

/** The last prompt token is always computed: its logits choose the first token. */
export function uncachedTokens(
  prompt: { readonly promptTokens: number; readonly blockSize: number },
  matchedBlocks: number,
): number {
  return Math.max(1, prompt.promptTokens - matchedBlocks * prompt.blockSize);
}

/** FNV-1a over the id, started from the key (highest-random-weight hashing, Thaler and Ravishankar 1998). */
function rendezvous(key: number, id: string): number {
  let hash = (key ^ Math.floor(key / 0x1_0000_0000)) | 0;
  for (let index = 0; index < id.length; index++) hash = Math.imul(hash ^ id.charCodeAt(index), 0x01000193);
  hash = Math.imul(hash ^ (hash >>> 15), 0x85ebca6b);
  return (hash ^ (hash >>> 13)) >>> 0;
}
