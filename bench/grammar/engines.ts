import { DEFAULT_SCHEMA_BUDGET } from "../../src/grammar/budget.ts";
import { compileSource } from "../../src/grammar/automaton/compiler.ts";
import { encodeProgram } from "../../src/grammar/automaton/format.ts";
import type { GrammarPolicy } from "../../src/grammar/grammar.ts";
import { prepareGrammar, RequestRefusal } from "../../src/grammar/prepare.ts";
import { Refusal } from "../../src/grammar/refusal.ts";
import type { GrammarBench } from "../../src/grammar/xgrammar-testing.ts";

export type Compiled =
  | { readonly kind: "artifact"; readonly bytes: Uint8Array }
  | { readonly kind: "refused" | "failed"; readonly why: string };

/** Schema to artifact, once, with nothing remembered of other schemas but what a long-lived process has warm. */
export type Compile = (schema: unknown, policy: GrammarPolicy) => Promise<Compiled>;

export const ENGINES = ["automaton", "xgrammar"] as const;
export type EngineName = (typeof ENGINES)[number];

export function openEngine(name: EngineName, bench: GrammarBench): Compile {
  return name === "automaton" ? automaton : (schema, policy) => xgrammar(schema, policy, bench);
}

const automaton: Compile = async (schema, policy) => {
  try {
    const source = { kind: "json_schema", schema, strict: false } as const;
    return { kind: "artifact", bytes: encodeProgram(compileSource(source, policy, DEFAULT_SCHEMA_BUDGET)) };
  } catch (error) {
    if (!(error instanceof Refusal)) return { kind: "failed", why: String(error) };
    return { kind: "refused", why: `${error.path} ${error.message}` };
  }
};

async function xgrammar(schema: unknown, policy: GrammarPolicy, bench: GrammarBench): Promise<Compiled> {
  try {
    const source = { kind: "json_schema", schema, strict: false } as const;
    const { kind, text } = prepareGrammar(source, policy, DEFAULT_SCHEMA_BUDGET);
    return { kind: "artifact", bytes: await bench.compileText(kind, text) };
  } catch (error) {
    if (!(error instanceof RequestRefusal)) return { kind: "failed", why: String(error) };
    return { kind: "refused", why: `${error.refusal.path} ${error.message}` };
  }
}
