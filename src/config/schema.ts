import { z } from "zod";

/** The one configuration file (YAML or JSON). Names may grow; what stands here keeps its meaning. */

const durationUnits = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000 } as const;

/** `500ms`, `5s`, `10m`, `1h` -> milliseconds. */
export const duration = z
  .string()
  .regex(/^\d+(\.\d+)?(ms|s|m|h)$/, "expected a duration such as 500ms, 5s, 10m or 1h")
  .transform((text) => {
    const unit = text.endsWith("ms") ? "ms" : (text.slice(-1) as "s" | "m" | "h");
    return Number.parseFloat(text) * durationUnits[unit];
  });

/** A secret by reference; never its value. */
const secret = z.strictObject({ env: z.string().min(1) });

const deadlines = z.strictObject({
  connect: duration.prefault("1s"),
  /** From a daemon's last `accepted` or `progress` event; of a backend of text, which tells none, 3 x the predicted prefill more. */
  firstToken: duration.prefault("10s"),
  betweenTokens: duration.prefault("5s"),
  total: duration.prefault("10m"),
});

const retry = z.strictObject({
  /** Includes the first attempt; per pool. */
  attempts: z.int().min(1).max(10).default(2),
  /** Retries allowed as a share of requests. */
  budget: z.number().min(0).max(1).default(0.1),
});

const breaker = z.strictObject({
  failures: z.int().min(1).max(1_000).default(5),
  window: duration.prefault("30s"),
  probeAfter: duration.prefault("10s"),
});

const resume = z.strictObject({
  /** How long an answer that broke waits for a backend that can go on with it. */
  wait: duration.prefault("10s"),
  /** Breaks that one choice outlives; 0 = an answer that breaks ends with an error. */
  breaks: z.int().min(0).max(1000).default(8),
  /** A stream is sent when it is whole: until then it may begin anew on a backend that cannot go on with it. */
  hold: z.boolean().default(false),
});

/**
 * Failures by which an answer that has not begun may leave a pool for the model's next one. Each names one kind of failure;
 * `overload` holds `rate_limit` too.
 */
export const fallbackRules = [
  /** A deadline before the first token passed. */
  "timeout",
  /** The backends take no more for now: a full queue, 503, 429. */
  "overload",
  /** 429 of an upstream alone. */
  "rate_limit",
  /** A backend failed on the request. */
  "5xx",
  /** Not reached, or the connection broke. */
  "connect",
  /** The prompt is longer than the pool's context. */
  "context_length_exceeded",
  /** The pool cannot do what is asked: it is passed over without an attempt. */
  "capability_missing",
] as const;
export type FallbackRule = (typeof fallbackRules)[number];

const fallbackOn = z.union([z.enum(fallbackRules), z.int().min(400).max(599)], {
  error: ({ input }) =>
    typeof input === "string" && /content|policy|moderation|refusal/i.test(input)
      ? "a refusal for content is never routed round"
      : `expected a status from 400 to 599 or one of ${fallbackRules.join(", ")}`,
});

const fallback = z.strictObject({
  /** A number stands for the status that the caller would get. Empty = the first pool's failure is the caller's. */
  on: z
    .array(fallbackOn)
    .default(["timeout", "overload", "5xx", "connect", "context_length_exceeded", "capability_missing"]),
});

/** A copy of some requests goes to another pool; its answers are thrown away. */
const shadow = z.strictObject({
  /** Serves none of this model's callers. */
  pool: z.string(),
  fraction: z.number().min(0).max(1),
  /** Copies at once; one more is not made. */
  concurrency: z.int().min(1).max(1024).default(8),
  /** A copy still running then is cancelled. */
  total: duration.prefault("1m"),
});

const hedge = z.strictObject({
  /**
   * How long the first token may be away before a second backend of the pool is asked as well: a duration, or `p95` of
   * this pool's own times to the first token.
   */
  after: z.union([z.literal("p95"), duration], { error: "expected p95, or a duration such as 500ms" }),
  /** Hedges as a share of requests. */
  max: z.number().min(0).max(1).default(0.05),
});

/** Engines beyond `daemon` join this list when their adapter does. */
export const backendKinds = ["daemon", "openai"] as const;

/** vLLM's names for what OpenAI's API lacks. */
const extensions = [
  "top_k",
  "min_p",
  "repetition_penalty",
  "ignore_eos",
  "stop_token_ids",
  "bad_words",
  "structured_outputs",
  "chat_template_kwargs",
] as const;

/**
 * What stands behind a pool of backend `openai`. Such endpoints do not tell what they can do, and many ignore what they
 * do not know: only what is declared here is sent there, the rest is done by the gateway or refused with the reason.
 */
const capabilities = z.strictObject({
  /** Tokens that one request may span; else what the endpoint's list of models says, if it does. */
  contextLength: z.int().min(1).optional(),
  jsonSchema: z.boolean().default(false),
  jsonObject: z.boolean().default(false),
  tools: z.boolean().default(false),
  /**
   * Goes on from an assistant message at the end: of itself (true), where that message says `prefix: true`, or where the
   * request says `continue_final_message: true`.
   */
  assistantPrefill: z.union([z.boolean(), z.enum(["prefix", "continue_final_message"])]).default(false),
  logprobs: z.boolean().default(false),
  seed: z.boolean().default(false),
  stop: z.boolean().default(true),
  /** Has `/completions` beside `/chat/completions`. */
  completions: z.boolean().default(false),
  /** Its token ids are those of the model's `tokenizer`, so that ids in a request mean the same there. */
  sharedVocabulary: z.boolean().default(false),
  developerRole: z.boolean().default(false),
  /** Understands `stream_options.include_usage`. */
  streamUsage: z.boolean().default(true),
  maxTokensField: z.enum(["max_tokens", "max_completion_tokens"]).default("max_tokens"),
  extensions: z.array(z.enum(extensions)).default([]),
});

const pool = z.strictObject({
  backend: z.enum(backendKinds),
  endpoints: z.array(z.url({ protocol: /^https?$/ })).min(1),
  key: secret.optional(),
  /** The name this pool's engine knows the model by, and the one an answer from it carries. */
  upstreamModel: z.string().min(1).optional(),
  /** Backend `openai`: what it can do; what is absent counts as not declared. */
  capabilities: capabilities.optional(),
  /** Backend `openai`: the path below the endpoint that tells whether it is there (`/models` when absent), or `none`. */
  health: z
    .union([z.literal("none"), z.string().regex(/^\/[^?#]*$/, "expected a path such as /models, or none")])
    .optional(),
  deadlines: deadlines.prefault({}),
  retry: retry.prefault({}),
  breaker: breaker.prefault({}),
  /** A second attempt beside one whose first token is late; absent = never. */
  hedge: hedge.optional(),
});

const model = z.strictObject({
  /** In order: inside a pool cost and affinity choose, failure moves on to the next. */
  pools: z.array(z.string()).min(1),
  /** `gguf:PATH`, `file:PATH/tokenizer.json` or `hf:ORG/REPO`. */
  tokenizer: z.string().min(1),
  /** Output tokens when the caller names none. */
  defaultMaxTokens: z.int().min(1).default(1024),
  /** Output tokens a caller may ask for. */
  maxTokens: z.int().min(1).optional(),
  /** Prefixes are shared inside a tenant, or by all tenants of the model. */
  cacheSharing: z.enum(["tenant", "model"]).default("tenant"),
  /** What becomes of an answer whose backend breaks off after a part of it was sent. */
  resume: resume.prefault({}),
  /** Which failures lead on to the next pool. */
  fallback: fallback.prefault({}),
  /** Weights of pools that share the traffic; a conversation stays with one. The others follow in order when it fails. */
  split: z
    .record(z.string(), z.number().min(0).max(1_000_000))
    .refine((weights) => Object.values(weights).some((weight) => weight > 0), "expected at least one weight above 0")
    .optional(),
  shadow: shadow.optional(),
});

const tenant = z.strictObject({
  /** `sha256:` + 64 hex digits of sha256(key). */
  keys: z.array(z.string().regex(/^sha256:[0-9a-f]{64}$/, "expected sha256:<64 hex digits>")).min(1),
  models: z.array(z.string()).min(1).optional(),
  priority: z.int().min(-100).max(100).default(0),
  weight: z.number().positive().default(1),
  /** Bounds what one tenant may have in preparation and in flight at once. */
  concurrency: z.int().min(1).default(256),
});

const bounds = z.strictObject({
  bodyBytes: z
    .int()
    .min(1024)
    .default(4 * 1024 * 1024),
  /** Requests of one tenant being prepared at once (template, tokens, grammar). */
  preparing: z.int().min(1).default(16),
  grammarBytes: z
    .int()
    .min(256)
    .default(64 * 1024),
  grammarCompile: duration.prefault("5s"),
  grammarCacheBytes: z
    .int()
    .min(1024)
    .default(256 * 1024 * 1024),
  drain: duration.prefault("30s"),
  /** KV blocks that the backends' feeds may name, over all backends; 32 bytes each, and up to 46 more as they are known. */
  kvIndexBlocks: z
    .int()
    .min(1024)
    .max(2 ** 26)
    .default(2 ** 20),
});

const stream = z.strictObject({
  /** After this long without output a comment keeps proxies from closing the connection; the first one commits a 200. */
  keepAlive: duration.prefault("15s"),
  /** Output that a caller has not read; above it the stream is broken off. */
  bufferBytes: z
    .int()
    .min(1024)
    .default(1024 * 1024),
});

export const configSchema = z
  .strictObject({
    listen: z
      .strictObject({ host: z.string().default("127.0.0.1"), port: z.int().min(0).max(65_535).default(8080) })
      .prefault({}),
    models: z.record(z.string().min(1), model),
    pools: z.record(z.string().min(1), pool),
    tenants: z.record(z.string().min(1), tenant),
    grammar: z
      .strictObject({
        /** `automaton`: our own, for JSON Schema and patterns; XGrammar still compiles EBNF and structural tags (tools). */
        engine: z.enum(["xgrammar", "automaton"]).default("xgrammar"),
        /** The XGrammar engine writes members in the order of the schema only. */
        propertyOrder: z.enum(["schema"]).default("schema"),
      })
      .prefault({}),
    compat: z.strictObject({ unknownFields: z.enum(["refuse", "ignore"]).default("refuse") }).prefault({}),
    /** Salts tenant names before they become cache salts; a random one per process when absent. */
    saltKey: secret.optional(),
    telemetry: z
      .strictObject({
        /** OTLP/HTTP traces endpoint; spans are off without it. */
        otlp: z.url().optional(),
        /** Prompts and completions in logs and spans. */
        content: z.boolean().default(false),
      })
      .prefault({}),
    bounds: bounds.prefault({}),
    stream: stream.prefault({}),
  })
  .superRefine((config, context) => {
    for (const [name, entry] of Object.entries(config.models)) {
      const refuse = (path: PropertyKey[], message: string) =>
        context.addIssue({ code: "custom", path: ["models", name, ...path], message });
      const mustBeThere = (poolName: string, path: PropertyKey[]) => {
        if (!Object.hasOwn(config.pools, poolName)) refuse(path, `no pool is named "${poolName}"`);
      };
      for (const [index, poolName] of entry.pools.entries()) mustBeThere(poolName, ["pools", index]);
      for (const poolName of Object.keys(entry.split ?? {})) {
        if (!entry.pools.includes(poolName)) refuse(["split", poolName], "is not one of the model's pools");
      }
      if (entry.shadow !== undefined) {
        mustBeThere(entry.shadow.pool, ["shadow", "pool"]);
        if (entry.pools.includes(entry.shadow.pool)) refuse(["shadow", "pool"], "answers the model's callers");
      }
    }
    for (const [name, entry] of Object.entries(config.pools)) {
      const refuse = (path: PropertyKey[], message: string) =>
        context.addIssue({ code: "custom", path: ["pools", name, ...path], message });
      if (entry.backend === "openai") {
        entry.endpoints.forEach((endpoint, index) => {
          const { username, password, search, hash } = new URL(endpoint);
          // Each would be lost, and a password would be a secret in a file.
          if (username + password + search + hash !== "") {
            refuse(["endpoints", index], "an endpoint has no user, query or fragment");
          }
        });
      } else {
        for (const field of ["capabilities", "health"] as const) {
          if (entry[field] !== undefined) refuse([field], "belongs to a pool of backend openai");
        }
      }
    }
    for (const [name, entry] of Object.entries(config.tenants)) {
      entry.models?.forEach((modelName, index) => {
        if (!Object.hasOwn(config.models, modelName)) {
          context.addIssue({
            code: "custom",
            path: ["tenants", name, "models", index],
            message: `no model is named "${modelName}"`,
          });
        }
      });
    }
  });

export type Config = z.output<typeof configSchema>;
export type PoolConfig = Config["pools"][string];
export type ModelConfig = Config["models"][string];
export type TenantConfig = Config["tenants"][string];
export type OpenAICapabilities = z.output<typeof capabilities>;
/** What counts where a pool declares nothing. */
export const undeclaredCapabilities: OpenAICapabilities = capabilities.parse({});
