import type { GenerationEvent } from "../../backends/backend.ts";
import type { Clock } from "../../clock.ts";
import type { SluiceError } from "../../errors.ts";
import type { LedgerEntry } from "../routing/ledger.ts";
import type { Pool, Pools } from "../routing/pools.ts";
import { uncachedTokens } from "../routing/route.ts";
import type { Permit } from "./breaker.ts";
import type { StreamBreaks } from "./breaks.ts";
import { coolFor, isBackendFault } from "./retry.ts";
import type { Run } from "./run.ts";
import type { Selection } from "./select.ts";

/** Blocks of a prompt just routed count as cached until events can have told so. */
const overlayMs = 3_000;
/** Without a live feed this gateway's own routing is all there is; caches of peers are believed for about as long. */
const historyMs = 120_000;

export interface AccountInput {
  readonly run: Run;
  readonly pool: Pool;
  readonly selection: Selection;
  readonly pools: Pools;
  readonly breaks: StreamBreaks;
  readonly clock: Clock;
}

/**
 * What one attempt means to the backend's books: load, breaker, learned rates, routed blocks. Opened in the turn of the
 * pick, so that no other request is routed by the state before it; `close` must follow, whatever happens.
 */
export class Account {
  readonly startedAt: number;
  /** Prompt tokens that this backend is expected to compute. */
  readonly uncached: number;
  firstTokenAt: number | undefined;
  readonly #input: AccountInput;
  readonly #permit: Permit;
  readonly #entry: LedgerEntry;
  readonly #contextTokens: number;
  /** Prompt tokens of others that were to be computed first. */
  readonly #ahead: number;

  constructor(input: AccountInput) {
    const { run, selection, pools, clock } = input;
    const { member, way, decision } = selection;
    const { promptIds, blockKeys, blockSize } = run.request;
    const { id } = member.backend;
    this.#input = input;
    this.startedAt = clock.now();
    this.#permit = member.breaker.begin(clock);
    this.#contextTokens = promptIds.length + (way === "tokens" ? run.sent.count : 0);
    this.uncached = uncachedTokens({ promptTokens: this.#contextTokens, blockSize }, decision.matchedBlocks);
    this.#ahead = pools.ledger.loadOf(id).pendingPrefillTokens;
    this.#entry = pools.ledger.pick(id, this.uncached);
    pools.index.routed(id, blockKeys, this.startedAt + overlayMs);
    member.inFlight++;
  }

  /** `tokens` of the prompt need not be computed any more. */
  prefilled(tokens: number): void {
    this.#entry.remaining(Math.max(0, this.#contextTokens - tokens));
  }

  firstToken(): void {
    if (this.firstTokenAt !== undefined) return;
    const { run, pools, selection, clock } = this.#input;
    const { backend } = selection.member;
    const now = clock.now();
    this.firstTokenAt = now;
    this.#entry.remaining(0);
    this.#permit.succeeded();
    if (!pools.index.feedState(backend.id).alive) {
      pools.index.routed(backend.id, run.request.blockKeys, now + historyMs);
    }
    if (backend.capabilities.tokenIds) return;
    // Engines of text tell no timings: what the first token took is all there is to learn from.
    const { activeRows: rows } = pools.ledger.loadOf(backend.id);
    const prefill = { prefillTokens: this.uncached, prefillMs: now - this.startedAt };
    pools.rates.observe(backend.id, { ...prefill, decodeTokens: 0, decodeMs: 0, rows });
  }

  finished({ usage, timings }: Extract<GenerationEvent, { type: "finish" }>): void {
    const { pools, breaks, selection } = this.#input;
    const { member } = selection;
    this.#permit.succeeded();
    breaks.finished(member);
    if (timings === undefined) return;
    const { id } = member.backend;
    pools.rates.observe(id, {
      prefillTokens: this.#ahead + this.#contextTokens - usage.cachedTokens,
      prefillMs: timings.queuedMs + timings.prefillMs,
      decodeTokens: usage.completionTokens - 1,
      decodeMs: timings.decodeMs,
      rows: pools.ledger.loadOf(id).activeRows,
    });
  }

  failed(error: SluiceError): void {
    const { pools, pool, breaks, selection, clock } = this.#input;
    const { member } = selection;
    const now = clock.now();
    member.coolUntil = Math.max(member.coolUntil, now + coolFor(error));
    if (!isBackendFault(error)) return;
    pools.suspect(member);
    const begun = this.firstTokenAt !== undefined;
    if (!begun && error.code !== "backend_stream_broken") {
      this.#permit.failed();
      return;
    }
    const { incident, open } = breaks.broke(member, pool.config.breaker, now);
    // Those who wait for their first token are victims of one death like those in the middle of their answers.
    if (!begun && incident) this.#permit.failed();
    if (open) breaks.trip(member.breaker, pool.config.breaker, clock);
  }

  close(): void {
    const { pools, selection } = this.#input;
    this.#permit.neutral();
    this.#entry.settle();
    pools.released(selection.member);
  }
}
