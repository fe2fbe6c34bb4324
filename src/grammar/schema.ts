// The way of a JSON Schema through this folder: budget -> read -> prune -> lower.
import { checkBudget, type SchemaBudget } from "./budget.ts";
import type { GrammarPolicy } from "./grammar.ts";
import { lowerSchema } from "./lower/schema.ts";
import { unsupported } from "./refusal.ts";
import type { Json } from "./schema/node.ts";
import { prune } from "./schema/prune.ts";
import { readSchema } from "./schema/read.ts";

/**
 * EBNF that matches only JSON texts valid under `schema`. Throws Refusal naming path and keyword of what cannot be
 * guaranteed or would cost too much.
 */
export function schemaToEbnf(schema: Json, policy: GrammarPolicy, budget: SchemaBudget): string {
  checkBudget(schema, budget);
  const { root, algebra, origins } = readSchema(schema);
  algebra.path = "";
  const pruned = prune(root, algebra);
  if (pruned.kind === "never") throw unsupported("", "Nothing can satisfy this schema.");
  return lowerSchema(pruned, algebra, origins, policy, { states: budget.states, textBytes: budget.grammarBytes });
}
