#!/usr/bin/env node
// Runs on Node >= 20 and hands over to Node >= 24, which runs the TypeScript beside it as it is.
import { fileURLToPath } from "node:url";
import { findNode24, missingNode24, runToEnd } from "../../bin/node24.mjs";

const node = findNode24();
if (node === undefined) {
  process.stderr.write(`${missingNode24()}\n`);
  process.exitCode = 69;
} else if (node === process.execPath) {
  await import("./main.ts");
} else {
  process.exitCode = await runToEnd(node, [fileURLToPath(import.meta.url), ...process.argv.slice(2)]);
}
