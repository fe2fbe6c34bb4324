// Any grammar source to an automaton: budget -> read -> prune -> states -> program -> bytes. No I/O, no dependence on the runtime.
import { checkBudget, type SchemaBudget } from "../budget.ts";
import type { GrammarPolicy } from "../grammar.ts";
import { Refusal, tooComplex, unsupported } from "../refusal.ts";
import { PatternFault, parseFullPattern } from "../regex/parse.ts";
import type { Json } from "../schema/node.ts";
import { prune } from "../schema/prune.ts";
import { readSchema } from "../schema/read.ts";
import { Builder } from "./builder.ts";
import { finish } from "./finish.ts";
import type { Program } from "./format.ts";
import { Fuel } from "./fuel.ts";
import { textStates } from "./text.ts";
import { Values } from "./values.ts";

/** Steps that one compilation may take; a step is a few tens of nanoseconds. */
export const DEFAULT_FUEL = 3_000_000;

/** The texts valid under `schema`, as the policy writes them. Throws Refusal naming path and keyword. */
export function compileSchema(schema: Json, policy: GrammarPolicy, budget: SchemaBudget, fuel = DEFAULT_FUEL): Program {
  return guarded(() => {
    checkBudget(schema, budget);
    const { root, algebra, origins } = readSchema(schema);
    algebra.path = "";
    const pruned = prune(root, algebra);
    if (pruned.kind === "never") throw unsupported("", "Nothing can satisfy this schema.");
    const builder = new Builder(new Fuel(fuel));
    const entry = new Values(builder, algebra, origins, policy).value(pruned);
    const program = finish(builder, entry);
    if (program === undefined) throw unsupported("", "Nothing can satisfy this schema.");
    return program;
  });
}

/** The texts that match the pattern from end to end. Throws Refusal. */
export function compileRegex(pattern: string, fuel = DEFAULT_FUEL): Program {
  return guarded(() => {
    const builder = new Builder(new Fuel(fuel));
    const entry = textStates(builder, parseFullPattern(pattern), "plain", { quote: false, target: builder.back });
    const program = finish(builder, entry);
    if (program === undefined) throw unsupported("", "Nothing matches this pattern.");
    return program;
  });
}

function guarded(step: () => Program): Program {
  try {
    return step();
  } catch (error) {
    if (error instanceof Refusal) throw error;
    if (error instanceof PatternFault) {
      const message = `The pattern ${error.message}.`;
      throw error.tooComplex ? tooComplex("", message) : unsupported("", message);
    }
    // Deep nesting ends the recursion of one of the steps.
    if (error instanceof RangeError) throw tooComplex("", "The grammar nests too deeply.");
    throw error;
  }
}
