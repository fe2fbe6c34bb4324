import { describe, expect, it } from "vitest";
import { checkImports } from "../../scripts/check-imports.mjs";

describe("the import rule", () => {
  it.each([
    ["grammar/lint.ts", 'import { app } from "../gateway/app.ts";', "grammar may not import gateway"],
    ["gateway/app.ts", 'import { createEngine } from "../engine/native.ts";', "gateway may not import engine"],
    ["gateway/app.ts", 'import type { Engine } from "../engine/native.ts";', "gateway may not import engine"],
    ["gateway/a.ts", 'import { s } from "../backends/daemon/server.ts";', "may not import backends/daemon/server"],
    ["backends/vllm.ts", 'export { route } from "../gateway/routing/route.ts";', "backends may not import gateway"],
    ["errors.ts", 'const later = await import("./gateway/app.ts");', "base may not import gateway"],
    ["engine/e.ts", 'new Worker(new URL("../gateway/w.ts", import.meta.url));', "engine may not import gateway"],
    ["gateway/app.ts", 'require("../../native/build/sluice_engine.node");', "may load a native addon"],
    ["gateway/app.ts", 'import x from "../../scripts/x.mjs";', "lies outside src/"],
    ["elsewhere/a.ts", "export {};", "is no room"],
  ])("refuses in %s: %s", (path, text, message) => {
    const faults = checkImports(path, text);
    expect(faults).toHaveLength(1);
    expect(faults[0]).toContain(message);
  });

  it("names the line of an import over several lines", () => {
    const text = '// import { x } from "../gateway/x.ts";\nimport {\n  a,\n  b,\n} from "../gateway/app.ts";\n';
    expect(checkImports("grammar/lint.ts", text)).toEqual([
      "src/grammar/lint.ts:5: grammar may not import gateway (../gateway/app.ts)",
    ]);
  });

  it.each([
    ["cli/up.ts", 'import { startGateway } from "../gateway/platform/node.ts";'],
    ["gateway/request.ts", 'import type { GrammarSource } from "../grammar/grammar.ts";'],
    ["engine/engine.ts", 'import type { Usage } from "../backends/backend.ts";'],
    ["engine/native.ts", 'require("../../native/build/sluice_engine.node");'],
    ["grammar/xgrammar-child.ts", 'require("../../native/build/sluice_grammar.node");'],
    ["backends/daemon/server.ts", 'import { createEngine } from "../../engine/native.ts";'],
    ["tokenizer/bpe.ts", 'import { SluiceError } from "../errors.ts";\nimport { z } from "zod";'],
    [
      "tokenizer/bpe.ts",
      '/* import { x } from "../gateway/x.ts"; */ const url = "https://host/a"; // from "../cli/x.ts"',
    ],
  ])("allows in %s: %s", (path, text) => {
    expect(checkImports(path, text)).toEqual([]);
  });
});
