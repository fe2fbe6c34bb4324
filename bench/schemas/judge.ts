import { Ajv2019 } from "ajv/dist/2019.js";
import { Ajv2020 } from "ajv/dist/2020.js";
import { Ajv, type ErrorObject } from "ajv";
import formats from "ajv-formats";
import draft04 from "ajv-draft-04";

/** A second opinion on answers: ajv, in the draft that the schema names (draft-07 where it names none). */

const options = { strict: false, allErrors: false, validateFormats: true, logger: false } as const;

function forDraft(schema: unknown): Ajv {
  const draft = typeof schema === "object" && schema !== null && "$schema" in schema ? String(schema.$schema) : "";
  const ajv = draft.includes("2020-12")
    ? new Ajv2020(options)
    : draft.includes("2019-09")
      ? new Ajv2019(options)
      : /draft-0[34]/.test(draft)
        ? new draft04.default(options)
        : new Ajv(options);
  formats.default(ajv);
  return ajv;
}

export type Verdict = { readonly kind: "valid" } | { readonly kind: "invalid" | "unjudged"; readonly why: string };

export function judge(schema: unknown, text: string): Verdict {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    return { kind: "invalid", why: `not JSON: ${error instanceof Error ? error.message : String(error)}` };
  }
  const known = typeof schema === "object" && schema !== null ? { ...schema } : schema;
  if (
    typeof known === "object" &&
    known !== null &&
    "$schema" in known &&
    !/draft-0[47]|20(19|20)/.test(String(known.$schema))
  ) {
    delete known.$schema;
  }
  // `id` without the dollar sign is draft-04's name for `$id`; ajv refuses it in later drafts, where it says nothing.
  if (typeof known === "object" && known !== null && "id" in known && typeof known.id === "string") delete known.id;
  try {
    const validate = forDraft(known).compile(known as object);
    if (validate(value)) return { kind: "valid" };
    const first: ErrorObject | undefined = validate.errors?.[0];
    return { kind: "invalid", why: `${first?.instancePath ?? ""} ${first?.message ?? ""}` };
  } catch (error) {
    return { kind: "unjudged", why: error instanceof Error ? error.message : String(error) };
  }
}
