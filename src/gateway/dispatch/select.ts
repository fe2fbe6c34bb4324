import type { Backend, BackendInfo } from "../../backends/backend.ts";
import { SluiceError, unavailable } from "../../errors.ts";
import type { PreparedRequest, RouteDecision } from "../request.ts";
import type { Member, Pool, Pools } from "../routing/pools.ts";
import { type Candidate, rank } from "../routing/route.ts";
import type { Way } from "./resume.ts";

export interface SelectInput {
  readonly pools: Pools;
  readonly pool: Pool;
  readonly request: PreparedRequest;
  readonly now: number;
  /** Tokens that stand before the next one: the prompt, and what was generated before. */
  readonly contextTokens: number;
  /** Why this request does not go there, whatever the member's state: it failed it, or answers it already. */
  readonly against: (member: Member) => string | undefined;
  /** How it would take the request, or why it cannot serve it at all. */
  readonly wayOn: (backend: Backend) => Way | SluiceError;
  /** Tokens the whole answer may have in a context of `room` tokens; below 1 = it is no place for it. */
  readonly limitIn: (way: Way, room: number) => number;
  /** Of the gateway's tokenizer for this model; undefined = not checked. */
  readonly vocabularyHash: string | undefined;
}

export interface Selection {
  readonly member: Member;
  readonly way: Way;
  /** Tokens the whole answer may have there. */
  readonly limit: number;
  readonly decision: RouteDecision;
}

export interface Picked extends Selection {
  /** Milliseconds the choice took. */
  readonly routeMs: number;
}

export interface Nobody {
  /** Every candidate with the reason why it will not do. */
  readonly excluded: RouteDecision["candidates"];
  /** Where no backend of the pool could ever serve the request: what the first said. */
  readonly objection: SluiceError | undefined;
}

/** The best backend of one pool for one request now. */
export function select(input: SelectInput): Selection | Nobody {
  const { pool, now } = input;
  const ways = new Map(pool.members.map((member) => [member, input.wayOn(member.backend)] as const));
  const cool = rankWith(input, ways, ({ coolUntil, health }) => {
    if (coolUntil > now) return "was full, silent or gone a moment ago";
    return health.ready && health.late === true ? "answers no probes in time" : undefined;
  });
  // A full or late backend is still better than none: its queue may have moved.
  const ranked = cool[0]?.excluded === undefined ? cool : rankWith(input, ways, () => undefined);
  const best = ranked[0];
  const member = pool.members.find(({ backend }) => backend.id === best?.backend);
  const way = member === undefined ? undefined : ways.get(member);
  if (best === undefined || best.excluded !== undefined || member === undefined || typeof way !== "string") {
    const objections = [...ways.values()].filter((each) => each instanceof SluiceError);
    return { excluded: ranked, objection: objections.length === ways.size ? objections[0] : undefined };
  }
  return {
    member,
    way,
    limit: input.limitIn(way, member.info === undefined ? Number.POSITIVE_INFINITY : tokensFor(member.info)),
    decision: {
      pool: pool.name,
      backend: member.backend,
      predictedMs: best.predictedMs,
      matchedBlocks: best.matchedBlocks,
      candidates: ranked,
    },
  };
}

function rankWith(
  input: SelectInput,
  ways: ReadonlyMap<Member, Way | SluiceError>,
  also: (member: Member) => string | undefined,
) {
  const { pools, pool, request, now } = input;
  const matched = pools.index.match(request.blockKeys, now);
  const peers = pool.members.map(({ backend }) => backend.id);
  const candidates = pool.members.map((member): Candidate => {
    const { id } = member.backend;
    return {
      id,
      excluded: whyNot(input, member, ways.get(member)) ?? also(member),
      matchedBlocks: matched.get(id) ?? 0,
      load: pools.ledger.loadOf(id),
      rates: pools.rates.of(id, peers),
    };
  });
  return rank({
    promptTokens: input.contextTokens,
    blockSize: request.blockSize,
    expectedTokens: request.maxNewTokens,
    affinityKey: request.blockKeys[0] ?? request.promptIds.length,
    candidates,
  });
}

/** Why a backend cannot take this request, as an operator should read it. */
function whyNot(input: SelectInput, member: Member, way: Way | SluiceError | undefined): string | undefined {
  const { now, vocabularyHash } = input;
  const { breaker, health, info } = member;
  if (way === undefined || way instanceof SluiceError) return way?.message ?? "not looked at";
  // Before what may pass: a backend that comes back has no more room than it had.
  const room = info === undefined ? Number.POSITIVE_INFINITY : tokensFor(info);
  if (input.limitIn(way, room) < 1) return `${tooShort} of ${room} tokens`;
  const against = input.against(member);
  if (against !== undefined) return against;
  if (!health.ready) return health.reason;
  if (!breaker.admits(now)) return `breaker is ${breaker.state(now)}`;
  if (info === undefined) return "has not told what it serves";
  return vocabularyMismatch(member, vocabularyHash);
}

const tooShort = "context_length_exceeded: a context";

/** What one generation may span: the model's context, or the backend's whole KV cache where that is smaller. */
export function tokensFor(info: BackendInfo): number {
  return Math.min(info.contextLength, info.kvTokens);
}

/**
 * Token ids mean nothing to a backend with another vocabulary: its answers would be noise, without any error. A backend
 * of text is sent none.
 */
export function vocabularyMismatch({ backend, info }: Member, vocabularyHash: string | undefined): string | undefined {
  if (!backend.capabilities.tokenIds) return undefined;
  if (vocabularyHash === undefined || info === undefined || info.vocabularyHash === vocabularyHash) return undefined;
  return "vocabulary differs from the gateway's tokenizer";
}

/** Nobody in the pool can take the request: say what the caller can do about it. */
export function nobody({ excluded, objection }: Nobody): SluiceError {
  if (objection !== undefined) return objection;
  const tooLong = excluded.length > 0 && excluded.every((candidate) => candidate.excluded?.startsWith(tooShort));
  if (tooLong) {
    return new SluiceError({
      status: 400,
      type: "invalid_request_error",
      code: "context_length_exceeded",
      message: "The prompt is longer than the context of every backend that could be asked.",
    });
  }
  return unavailable("no_backend", "No backend can take this request now.", { retryAfterMs: 1_000 });
}
