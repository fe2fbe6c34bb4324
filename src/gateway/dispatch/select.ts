import type { BackendInfo } from "../../backends/backend.ts";
import type { PreparedRequest, RouteDecision } from "../request.ts";
import type { Member, Pool, Pools } from "../routing/pools.ts";
import { type Candidate, rank } from "../routing/route.ts";

export interface SelectInput {
  readonly pools: Pools;
  readonly pool: Pool;
  readonly request: PreparedRequest;
  readonly now: number;
  /** Backends that failed this request already. */
  readonly tried: ReadonlySet<string>;
  /** Of the gateway's tokenizer for this model; undefined = not checked. */
  readonly vocabularyHash: string | undefined;
}

export interface Selection {
  readonly member: Member;
  readonly decision: RouteDecision;
}

/** The best backend of one pool for one request now, or every candidate with the reason why none will do. */
export function select(input: SelectInput): Selection | { readonly excluded: RouteDecision["candidates"] } {
  const { pool, now } = input;
  const cool = rankWith(input, (member) => (member.coolUntil > now ? "said it was full" : undefined));
  // A full backend is still better than none: its queue may have moved.
  const ranked = cool[0]?.excluded === undefined ? cool : rankWith(input, () => undefined);
  const best = ranked[0];
  const member = pool.members.find(({ backend }) => backend.id === best?.backend);
  if (best === undefined || best.excluded !== undefined || member === undefined) return { excluded: ranked };
  return {
    member,
    decision: {
      pool: pool.name,
      backend: member.backend,
      predictedMs: best.predictedMs,
      matchedBlocks: best.matchedBlocks,
      candidates: ranked,
    },
  };
}

function rankWith(input: SelectInput, also: (member: Member) => string | undefined) {
  const { pools, pool, request, now } = input;
  const matched = pools.index.match(request.blockKeys, now);
  const peers = pool.members.map(({ backend }) => backend.id);
  const candidates = pool.members.map((member): Candidate => {
    const { id } = member.backend;
    return {
      id,
      excluded: whyNot(input, member) ?? also(member),
      matchedBlocks: matched.get(id) ?? 0,
      load: pools.ledger.loadOf(id),
      rates: pools.rates.of(id, peers),
    };
  });
  return rank({
    promptTokens: request.promptIds.length,
    blockSize: request.blockSize,
    expectedTokens: request.maxNewTokens,
    affinityKey: request.blockKeys[0] ?? request.promptIds.length,
    candidates,
  });
}

/** Why a backend cannot take this request, as an operator should read it. */
function whyNot({ request, now, tried, vocabularyHash }: SelectInput, member: Member): string | undefined {
  const { backend, breaker, health, info } = member;
  if (tried.has(backend.id)) return "failed this request";
  if (!health.ready) return health.reason;
  if (!breaker.admits(now)) return `breaker is ${breaker.state(now)}`;
  if (info === undefined) return "has not told what it serves";
  const mismatch = vocabularyMismatch(member, vocabularyHash);
  if (mismatch !== undefined) return mismatch;
  const needed = request.promptIds.length + request.maxNewTokens;
  const room = tokensFor(info);
  if (needed > room) return `context of ${room} tokens is too short`;
  return undefined;
}

/** What one generation may span: the model's context, or the backend's whole KV cache where that is smaller. */
export function tokensFor(info: BackendInfo): number {
  return Math.min(info.contextLength, info.kvTokens);
}

/** Token ids mean nothing to a backend with another vocabulary: its answers would be noise, without any error. */
export function vocabularyMismatch({ info }: Member, vocabularyHash: string | undefined): string | undefined {
  if (vocabularyHash === undefined || info === undefined || info.vocabularyHash === vocabularyHash) return undefined;
  return "vocabulary differs from the gateway's tokenizer";
}
