// The gateway's compiler for the automaton engine: no child process and no native code, since every step is bounded by fuel.
import { createHash } from "node:crypto";
import { LRUCache } from "lru-cache";
import { invalidRequest, type SluiceError } from "../../errors.ts";
import { checkBudget, DEFAULT_SCHEMA_BUDGET, type SchemaBudget } from "../budget.ts";
import type { GrammarArtifact, GrammarCompiler, GrammarPolicy, GrammarSource } from "../grammar.ts";
import { DEFAULT_POLICY } from "../policy.ts";
import { Refusal } from "../refusal.ts";
import { paramOf, plainJson, sourceKey } from "../source.ts";
import { checkStrictProfile } from "../strict.ts";
import { compileRegex, compileSchema } from "./compile.ts";
import { encodeProgram, type Program } from "./format.ts";

export interface AutomatonCompilerOptions {
  readonly policy?: GrammarPolicy;
  readonly budget?: Partial<SchemaBudget>;
  /** Artifacts kept. Default 256 MiB. */
  readonly cacheBytes?: number;
  /** Compiles what the automaton does not take: EBNF and structural tags. */
  readonly others: GrammarCompiler;
}

const KNOWN_SOURCES = 10_000;
/** Counted into every hash: another compiler may make another automaton of one source. */
const NAME = "sluice-automaton-1";
const MAX_PARAM = 512;

/** `compile` throws a 400 SluiceError with path and keyword for what cannot be guaranteed or costs too much. */
export function createAutomatonCompiler(options: AutomatonCompilerOptions): GrammarCompiler {
  const policy = options.policy ?? DEFAULT_POLICY;
  const budget = { ...DEFAULT_SCHEMA_BUDGET, ...options.budget };
  const known = new LRUCache<string, { readonly hash: string } | { readonly refused: SluiceError }>({
    max: KNOWN_SOURCES,
  });
  const artifacts = new LRUCache<string, GrammarArtifact>({
    maxSize: options.cacheBytes ?? 256 * 1024 ** 2,
    sizeCalculation: (artifact) => artifact.bytes.byteLength + 256,
  });
  return {
    async compile(source, signal) {
      signal.throwIfAborted();
      if (source.kind === "ebnf" || source.kind === "structural_tag") return options.others.compile(source, signal);
      const key = sourceKey(source, budget.bytes * 4);
      const before = known.get(key);
      if (before !== undefined && "refused" in before) throw before.refused;
      const cached = before && artifacts.get(before.hash);
      if (cached !== undefined) return cached;
      try {
        const bytes = encodeProgram(compileSource(source, policy, budget));
        const hash = createHash("sha256").update(NAME).update(bytes).digest("hex");
        const artifact = artifacts.get(hash) ?? { hash, engine: "automaton", bytes };
        artifacts.set(hash, artifact);
        known.set(key, { hash });
        return artifact;
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        // Fuel, not time, ends a compilation, so a refusal never changes.
        const refused = refusedRequest(error, paramOf(source));
        known.set(key, { refused });
        throw refused;
      }
    },
    close: () => options.others.close(),
  };
}

/** Throws Refusal. */
export function compileSource(
  source: Exclude<GrammarSource, { readonly kind: "ebnf" | "structural_tag" }>,
  policy: GrammarPolicy,
  budget: SchemaBudget,
): Program {
  switch (source.kind) {
    case "json_object":
      return compileSchema({ type: "object" }, policy, budget);
    case "regex":
      return compileRegex(source.pattern);
    case "json_schema": {
      const schema = plainJson(source.schema, budget);
      if (source.strict) {
        // First, so that a schema too deep for a recursive walk is refused as such.
        checkBudget(schema, budget);
        checkStrictProfile(schema);
      }
      return compileSchema(schema, policy, budget);
    }
  }
}

function refusedRequest(refusal: Refusal, base: string): SluiceError {
  const param = base + refusal.path;
  const short = param.length > MAX_PARAM ? `${param.slice(0, MAX_PARAM)}...` : param;
  return invalidRequest(refusal.code, refusal.message, short);
}
