import { z } from "zod";

/**
 * The daemon protocol, version 1: HTTP, JSON in, NDJSON out. Both sides import this file and nothing else of each other.
 *
 *   GET    /v1/info               BackendInfo
 *   POST   /v1/generate           generateBody -> NDJSON of generationEvent, which exactly one `finish` or `error` ends; 204
 *                                 where it names a stream
 *   DELETE /v1/generate/{id}      cancels; 204 also for unknown ids, and one that comes later is then refused: a cancel may
 *                                 overtake what it cancels
 *   POST   /v1/streams            -> NDJSON without an end: `streamOpened`, then `streamFrame`s
 *   PUT    /v1/grammars/{hash}    artifact bytes, `x-sluice-mac` = HMAC-SHA256(pool key, hash bytes || artifact bytes) in hex
 *   GET    /v1/kv/events?after=N&instance=I  NDJSON of kvEvent: deltas after N, or a snapshot first when N is too old or
 *                                 absent, or I is another run of the daemon (sequence numbers restart with it)
 *   POST   /v1/drain              stops accepting, finishes what runs; 202 at once
 *   POST   /v1/sleep /v1/wake     501 `not_supported`
 *   GET    /metrics /healthz /readyz   (ready = it has produced a token)
 *
 * With a pool key every /v1 call carries `authorization: Bearer KEY`; without one the MAC's key is empty.
 * Errors before a stream are `errorBody` with a status.
 *
 * A stream carries what many generations say, a line a step: one read and one parse for a whole batch. A generate that names
 * a stream and a number of the caller's choice is answered 204 at once, or refused as ever; what it says comes on the
 * stream under that number, and may come before the 204 does. A number is used once in a stream's life, so a line can never
 * speak of two generations, and what a cancelled one still says is known by its number. A refused generate says nothing.
 * Lines are numbered; with no news for `heartbeatEveryMs` an empty one comes. A stream that ends or breaks, for whatever
 * reason, ends every generation on it: the daemon cancels them, the gateway takes them for broken. It belongs to nobody
 * but who opened it: its name is a secret of the two, behind the pool key where there is one.
 *
 * A generation that waits (for a row, or for its turn to prefill) gets its last `progress` again each `heartbeatEveryMs`
 * as long as the engine finishes steps: a deadline that counts from the last event then fires on a stalled engine, never
 * on a busy one.
 */
export const protocolVersion = 1;
export const ndjson = "application/x-ndjson";
export const macHeader = "x-sluice-mac";
export const heartbeatEveryMs = 2_000;

/** One pass instead of a schema an element: 100,000 ids take 1 ms instead of 5. The path names the first fault. */
const tokenIds = z.unknown().transform((value, context): readonly number[] => {
  if (!Array.isArray(value)) {
    context.addIssue({ code: "custom", message: "expected an array of token ids" });
    return z.NEVER;
  }
  const ids: readonly unknown[] = value;
  const fault = ids.findIndex((id) => !isTokenId(id));
  if (fault >= 0) {
    context.addIssue({ code: "custom", path: [fault], message: "expected a token id" });
    return z.NEVER;
  }
  return value;
});
const isTokenId = (id: unknown) => typeof id === "number" && Number.isInteger(id) && id >= 0 && id <= 0xffff_ffff;
const someTokenIds = (max: number) => tokenIds.refine((ids) => ids.length <= max, `expected at most ${max} token ids`);

export const samplingSchema = z.strictObject({
  temperature: z.number().min(0),
  topK: z.int().min(0),
  topP: z.number().min(0).max(1),
  minP: z.number().min(0).max(1),
  repetitionPenalty: z.number().positive(),
  presencePenalty: z.number(),
  frequencyPenalty: z.number(),
  logitBias: z.array(z.tuple([z.int().min(0), z.number()])).max(1024),
  bannedSequences: z.array(someTokenIds(64).refine((ids) => ids.length > 0, "expected a token id")).max(256),
  seed: z.int(),
  choice: z.int().min(0),
});

export const generateBody = z.strictObject({
  id: z.string().min(1).max(128),
  model: z.string().min(1).optional(),
  promptIds: tokenIds.refine((ids) => ids.length > 0, "expected at least one token id"),
  /** Already sent to the caller: counts for output penalties, position, random draws and grammar. */
  generatedIds: tokenIds.prefault([]),
  maxNewTokens: z.int().min(1),
  sampling: samplingSchema,
  stopIds: someTokenIds(64),
  grammar: z
    .string()
    .regex(/^[0-9a-f]{64}$/)
    .optional(),
  logprobs: z.int().min(0).max(20).optional(),
  salt: z.string().max(256),
  priority: z.int(),
  /** Milliseconds left when the daemon reads it; never an absolute time. */
  deadlineMs: z.number().positive(),
  traceparent: z.string().max(128).optional(),
  /** Where its events go instead of the answer's body. */
  stream: z.strictObject({ id: z.string().max(64), number: z.int().min(1).max(0xffff_ffff) }).optional(),
});
export type GenerateBody = z.output<typeof generateBody>;

const tokenLogprob = z.object({ logprob: z.number(), top: z.array(z.tuple([z.int(), z.number()])) });

export const usageSchema = z.object({ promptTokens: z.int(), cachedTokens: z.int(), completionTokens: z.int() });

/** Unknown members are ignored, so that a newer daemon may say more. */
export const generationEvent = z.discriminatedUnion("type", [
  z.object({ type: z.literal("accepted"), cachedTokens: z.int() }),
  z.object({ type: z.literal("progress"), prefilled: z.int() }),
  z.object({ type: z.literal("tokens"), ids: tokenIds, logprobs: z.array(tokenLogprob).optional() }),
  z.object({
    type: z.literal("finish"),
    reason: z.enum(["stop", "length"]),
    usage: usageSchema,
    timings: z
      .object({ queuedMs: z.number(), prefillMs: z.number(), decodeMs: z.number(), steps: z.int(), maskMs: z.number() })
      .optional(),
  }),
  z.object({ type: z.literal("error"), code: z.string(), message: z.string(), retryable: z.boolean() }),
]);

export const streamOpened = z.object({ stream: z.string().min(1).max(64) });

/** What a stream says of a generation, beside its tokens in `rows`. */
const numberedEvent = z.intersection(z.object({ id: z.int() }), generationEvent);

/**
 * All that a stream's generations said since the line before; for each of them `before` comes first, then `rows`, then
 * `after`. Tokens with logprobs are `tokens` events in `after`, and all of that generation's are. `step` counts the lines
 * from 1, so that one that got lost is missed.
 *
 *   {"step":7,"rows":[[3,501],[4,77]]}
 *   {"step":8,"before":[{"id":5,"type":"accepted","cachedTokens":16}],"rows":[[3,9]],"after":[{"id":3,"type":"finish",...}]}
 */
export const streamFrame = z.object({
  step: z.int(),
  before: z.array(numberedEvent).default([]),
  /** The generation's number, then its tokens. */
  rows: z.custom<number[][]>(
    (rows) => Array.isArray(rows) && rows.every((row) => Array.isArray(row) && row.length > 1 && row.every(isTokenId)),
    "expected rows of a number and token ids",
  ),
  after: z.array(numberedEvent).default([]),
});

export const infoBody = z.object({
  protocol: z.int(),
  /** Another value after each start of the daemon. */
  instance: z.string(),
  model: z.string(),
  vocabularyHash: z.string(),
  tokenizerFingerprint: z.string(),
  blockSize: z.int().min(1),
  contextLength: z.int().min(1),
  kvTokens: z.int().min(1),
  maxRows: z.int().min(1),
  grammarEngines: z.array(z.string()),
  roles: z.array(z.enum(["prefill", "decode"])),
  parallel: z.object({ tensor: z.int(), expert: z.int(), pipeline: z.int() }),
});
export type InfoBody = z.output<typeof infoBody>;

const kvBlock = z.object({ key: z.string(), parent: z.string().optional(), salt: z.string(), tokenIds });

/** Blocks in one line of a feed, so that lines stay far below the reader's bound. */
export const kvBlocksPerLine = 512;

export const kvEvent = z.discriminatedUnion("type", [
  /** Forget what was known. With `more` the rest follows as deltas; only a line without it may be resumed after. */
  z.object({
    type: z.literal("snapshot"),
    seq: z.int(),
    instance: z.string(),
    blocks: z.array(kvBlock),
    more: z.boolean().default(false),
  }),
  z.object({
    type: z.literal("delta"),
    seq: z.int(),
    stored: z.array(kvBlock),
    removed: z.array(z.string()),
    more: z.boolean().default(false),
  }),
  /** Sent when nothing changed for a while, so that a silent feed can be told from a dead one. */
  z.object({ type: z.literal("heartbeat"), seq: z.int() }),
]);
export type KvEvent = z.output<typeof kvEvent>;

/** Load as of the moment of the answer; also the body of `/readyz`. */
export const loadBody = z.object({
  ready: z.boolean(),
  reason: z.string().optional(),
  runningRows: z.int(),
  queuedRows: z.int(),
  pendingPrefillTokens: z.int(),
  freeKvTokens: z.int(),
});

/** `grammar_missing` (409): upload once and repeat. `queue_full`, `draining` (503): another backend. */
export const errorBody = z.object({
  error: z.object({ code: z.string(), message: z.string(), retryable: z.boolean(), param: z.string().optional() }),
});
