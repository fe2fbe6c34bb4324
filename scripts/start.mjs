// `npm start [-- ARGUMENTS]`: set-up, then `sluice up ARGUMENTS`.
import { join } from "node:path";
import { findNode24, missingNode24, runToEnd } from "../bin/node24.mjs";
import { main, root, SetupError } from "./run.mjs";
import { setup, sluiceHome } from "./setup.mjs";

await main(async () => {
  await setup();
  const node = findNode24();
  if (node === undefined) throw new SetupError(missingNode24());
  const command = [join(root, "bin", "sluice.mjs"), "up", ...process.argv.slice(2)];
  const env = { ...process.env, SLUICE_HOME: sluiceHome() };
  process.exitCode = await runToEnd(node, command, { env, ipc: true });
});
