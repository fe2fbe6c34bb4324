import type { GrammarPolicy } from "./grammar.ts";

/**
 * What a gateway uses unless it is told otherwise: members in the schema's order; white space optional and bounded, wide
 * enough for `{"a": 1, "b": 2}` and for none at all, which between them are what models write when not asked to indent.
 */
export const DEFAULT_POLICY: GrammarPolicy = { propertyOrder: "schema", whitespace: { kind: "compact" } };

/** Where white space may stand in a JSON text. */
export interface WhitespaceRules {
  /** After `,` and `:`. */
  readonly separator: string;
  /** After `{` and `[`, and before `}` and `]`. */
  readonly inside: string;
}

/** EBNF for the policy's white space; never mandatory, never endless. */
export function whitespaceRules(policy: GrammarPolicy): WhitespaceRules {
  if (policy.whitespace.kind === "compact") return { separator: '" "?', inside: "" };
  const { max } = policy.whitespace;
  if (max === 0) return { separator: "", inside: "" };
  const run = max === 1 ? "[ \\n\\t]?" : `[ \\n\\t]{0,${max}}`;
  return { separator: run, inside: run };
}

/** Stable text of the policy, for hashes. */
export function policyText(policy: GrammarPolicy): string {
  const { whitespace } = policy;
  return `${policy.propertyOrder}/${whitespace.kind === "compact" ? "compact" : `bounded:${whitespace.max}`}`;
}
