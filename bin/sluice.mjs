#!/usr/bin/env node
// The `sluice` command. Runs on Node >= 20 and hands over to Node >= 24, which runs the TypeScript sources as they are.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { findNode24, missingNode24, runToEnd } from "./node24.mjs";

// In a clone the command shares models and key with `npm start`.
const cloneHome = fileURLToPath(new URL("../.sluice", import.meta.url));
if (!process.env.SLUICE_HOME && existsSync(cloneHome)) process.env.SLUICE_HOME = cloneHome;

const node = findNode24();
if (node === undefined) {
  process.stderr.write(`${missingNode24()}\n`);
  process.exitCode = 69;
} else if (node === process.execPath) {
  const { main } = await import("../src/cli/main.ts");
  process.exitCode = await main(process.argv.slice(2));
  // An open channel to the launcher would keep a finished command alive.
  if (process.connected) process.disconnect();
} else {
  const self = fileURLToPath(import.meta.url);
  process.exitCode = await runToEnd(node, [self, ...process.argv.slice(2)], { ipc: true });
}
