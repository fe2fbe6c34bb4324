import { z } from "zod";
import { generationFields, responseFormat, unsupported } from "./fields.ts";

/** The body of `POST /v1/completions`. */

const tokenIds = z.array(z.int().min(0)).min(1);

export const completionBody = z
  .strictObject({
    ...generationFields,
    prompt: z.union([z.string(), tokenIds, z.array(z.string()).min(1).max(128), z.array(tokenIds).min(1).max(128)]),
    logprobs: z.int().min(0).max(20).nullish(),
    response_format: responseFormat.nullish(),
    best_of: unsupported("Use n: every answer generated is returned.", (value) => value === 1),
    echo: unsupported("The prompt is not repeated.", (value) => value === false),
    suffix: unsupported("The model does not fill in the middle.", (value) => value === ""),
  })
  .superRefine((body, context) => {
    const prompts = typeof body.prompt === "string" || typeof body.prompt[0] === "number" ? 1 : body.prompt.length;
    if (prompts * (body.n ?? 1) > 128) {
      context.addIssue({ code: "custom", path: ["n"], message: "expected at most 128 answers over all prompts" });
    }
  });
export type CompletionBody = z.output<typeof completionBody>;
