import { z } from "zod";

/** What chat and text completions share. Bounds are OpenAI's where it has one, else the daemon protocol's. */

/** A field of OpenAI's that asks for something no backend here does: null, or a value that changes nothing, passes. */
export const unsupported = (reason: string, harmless: (value: unknown) => boolean = () => false) =>
  z
    .unknown()
    .superRefine((value, context) => {
      if (value === undefined || value === null || harmless(value)) return;
      context.addIssue({ code: "custom", message: reason, params: { code: "unsupported_parameter" } });
    })
    .optional();

/** A field that is for the caller's own books or a hint to a service: taken, checked no further, without effect. */
const noted = z.unknown().optional();

export const harmlessFields = {
  user: noted,
  metadata: noted,
  store: noted,
  service_tier: noted,
  safety_identifier: noted,
  prompt_cache_key: noted,
  prompt_cache_retention: noted,
} as const;

const stopString = z.string().min(1).max(1024);

export const responseFormat = z.discriminatedUnion("type", [
  z.strictObject({ type: z.literal("text") }),
  z.strictObject({ type: z.literal("json_object") }),
  z.strictObject({
    type: z.literal("json_schema"),
    json_schema: z.strictObject({
      name: z.string().regex(/^[a-zA-Z0-9_-]{1,64}$/, "expected 1 to 64 letters, digits, underscores or dashes"),
      description: z.string().nullish(),
      schema: z.union([z.record(z.string(), z.unknown()), z.boolean()]).optional(),
      strict: z.boolean().nullish(),
    }),
  }),
]);

/** vLLM's own field for what `response_format` cannot say; exactly one member. */
const structuredOutputs = z
  .strictObject({
    json: z.union([z.record(z.string(), z.unknown()), z.boolean(), z.string()]).optional(),
    json_object: z.literal(true).optional(),
    regex: z.string().min(1).optional(),
    grammar: z.string().min(1).optional(),
    choice: z.array(z.string().min(1)).min(1).max(1024).optional(),
    structural_tag: z.record(z.string(), z.unknown()).optional(),
  })
  .refine((value) => Object.values(value).filter((member) => member !== undefined).length === 1, {
    error: "expected exactly one of json, json_object, regex, grammar, choice and structural_tag",
  });

export const generationFields = {
  ...harmlessFields,
  model: z.string().min(1),
  stream: z.boolean().nullish(),
  stream_options: z
    .strictObject({
      include_usage: z.boolean().nullish(),
      // Padding against traffic analysis; without it the stream is OpenAI's own with the option off.
      include_obfuscation: z.boolean().nullish(),
    })
    .nullish(),
  n: z.int().min(1).max(128).nullish(),
  max_tokens: z.int().min(1).nullish(),
  stop: z.union([stopString, z.array(stopString).max(4)]).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: z.number().min(0).max(1).nullish(),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  seed: z.int().nullish(),
  logit_bias: z
    .record(z.string().regex(/^\d{1,9}$/, "expected a token id"), z.number().min(-100).max(100))
    .refine((bias) => Object.keys(bias).length <= 1024, { error: "expected at most 1024 entries" })
    .nullish(),
  // Extensions, under vLLM's names.
  top_k: z.int().min(-1).nullish(),
  min_p: z.number().min(0).max(1).nullish(),
  repetition_penalty: z.number().positive().max(10).nullish(),
  ignore_eos: z.boolean().nullish(),
  stop_token_ids: z.array(z.int().min(0)).max(32).nullish(),
  bad_words: z.array(z.string().min(1).max(256)).max(64).nullish(),
  structured_outputs: structuredOutputs.nullish(),
  min_tokens: unsupported("An answer cannot be kept from ending.", (value) => value === 0),
} as const;

export type GenerationFields = z.output<z.ZodObject<typeof generationFields>>;
