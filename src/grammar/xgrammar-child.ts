// The compile child: one warm XGrammar compiler for one vocabulary, in a process that can be killed. One job at a time.
import { createRequire } from "node:module";
import { setInterval as ticks } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { SchemaBudget } from "./budget.ts";
import type { FromChild, ToChild } from "./child-protocol.ts";
import type { GrammarPolicy } from "./grammar.ts";
import { grammarHash, prepareGrammar, type PreparedGrammar, RequestRefusal } from "./prepare.ts";

interface Compiler {
  compile(
    kind: PreparedGrammar["kind"],
    text: string,
  ): Promise<{ readonly bytes: Uint8Array; readonly warnings: readonly string[] }>;
}

interface Addon {
  readonly Compiler: new (bytes: Uint8Array, ends: Uint32Array, stopIds: Int32Array, cacheBytes: number) => Compiler;
}

interface Session {
  readonly compiler: Compiler;
  readonly policy: GrammarPolicy;
  readonly budget: SchemaBudget;
  readonly vocabularyHash: string;
}

// The core gives a third of it to rules in 16 shards, and keeps no rule larger than a shard: a smaller cache would never
// hold the formats, which are what costs.
const RULE_CACHE_BYTES = 256 * 1024 * 1024;
const BUDGET_CHECK_MS = 25;

let session: Session | undefined;
let prepared: PreparedGrammar | undefined;
/** What this process had used when the job began. */
let begun = process.cpuUsage();
let working = false;
/** A compilation has ended, and no other begun. */
let spent = false;

function send(message: FromChild): void {
  process.send?.(message);
}

async function handle(message: ToChild): Promise<void> {
  if (message.type === "start") {
    const addon: Addon = createRequire(import.meta.url)(
      fileURLToPath(new URL("../../native/build/sluice_grammar.node", import.meta.url)),
    );
    const { policy, budget, vocabularyHash } = message;
    const compiler = new addon.Compiler(message.bytes, message.ends, message.stopIds, RULE_CACHE_BYTES);
    session = { compiler, policy, budget, vocabularyHash };
    void watchBudgets(message.memoryBytes, message.cpuMs);
    send({ type: "ready" });
    return;
  }
  if (session === undefined) throw new Error("the compile child was not started");
  working = true;
  try {
    if (message.type === "prepare") {
      begun = process.cpuUsage();
      spent = false;
      prepared = prepareGrammar(message.source, session.policy, session.budget);
      send({ type: "prepared", hash: grammarHash(prepared, session.policy, session.vocabularyHash) });
      return;
    }
    if (prepared === undefined) throw new Error("nothing is prepared");
    const { bytes, warnings } = await session.compiler.compile(prepared.kind, prepared.text);
    if (warnings.length > 0) {
      const message = `The grammar engine would not keep all of this grammar: ${warnings.join(" ")}`;
      send({ type: "refused", code: "unsupported_schema", message, param: undefined });
    } else send({ type: "compiled", bytes });
  } catch (error) {
    send(refusal(error));
  } finally {
    working = false;
    spent = message.type === "compile";
  }
}

function refusal(error: unknown): FromChild {
  if (error instanceof RequestRefusal) {
    return { type: "refused", code: error.refusal.code, message: error.message, param: error.param };
  }
  if (error instanceof RangeError) {
    return {
      type: "refused",
      code: "schema_too_complex",
      message: "The grammar is too deeply nested.",
      param: undefined,
    };
  }
  const text = error instanceof Error ? error.message : String(error);
  const outOfMemory = text.includes("bad_alloc");
  return {
    type: "refused",
    code: outOfMemory ? "schema_too_complex" : "invalid_schema",
    message: outOfMemory
      ? "The grammar needs more memory than the budget allows."
      : `The grammar cannot be compiled: ${text.trim().slice(0, 300)}`,
    param: undefined,
  };
}

/**
 * Native compilation runs on another thread, so this loop sees what it takes. Processor time and not the clock's: on a busy
 * machine a good schema would be refused for what its neighbours do.
 */
async function watchBudgets(memoryBytes: number, cpuMs: number): Promise<void> {
  for await (const _ of ticks(BUDGET_CHECK_MS, undefined, { ref: false })) {
    const { user, system } = process.cpuUsage(begun);
    const tooLarge = process.memoryUsage.rss() > memoryBytes;
    if (working && tooLarge) send({ type: "over", budget: "memory" });
    else if (working && (user + system) / 1000 > cpuMs) send({ type: "over", budget: "time" });
    // What the last job left behind is not the next one's fault: that one gets a new child.
    else if (spent && tooLarge) process.exit(0);
  }
}

process.on("message", (message: ToChild) => {
  void handle(message);
});
// The gateway is gone: nobody waits for an answer any more.
process.on("disconnect", () => process.kill(process.pid, "SIGKILL"));
