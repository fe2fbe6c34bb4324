// `npm test [-- VITEST ARGUMENTS]`: set-up, the native tests, then vitest under Node 24. Arguments (a path, `-t NAME`)
// narrow vitest down and leave the native tests out. The last line adds both up: `N passed, N failed`.
import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { findNode24, missingNode24, runToEnd } from "../bin/node24.mjs";
import { duration } from "./progress.mjs";
import { main, root, SetupError } from "./run.mjs";
import { setup, sluiceHome } from "./setup.mjs";
import { nativeTests } from "./test-native.mjs";
import { readVitest } from "./test-results.mjs";

const results = join(root, ".cache", "test");

async function timed(title, work) {
  const started = performance.now();
  const outcome = await work();
  process.stdout.write(`${title}: ${duration(performance.now() - started)}\n`);
  return outcome;
}

async function vitest(node, args) {
  const report = join(results, "vitest.json");
  const command = [join(root, "node_modules", "vitest", "vitest.mjs"), "run", "--reporter=default", "--reporter=json"];
  const env = { ...process.env, SLUICE_HOME: sluiceHome(), NODE_ENV: "test" };
  const code = await runToEnd(node, [...command, `--outputFile.json=${report}`, ...args], { cwd: root, env });
  return readVitest(existsSync(report) ? readFileSync(report, "utf8") : "", code);
}

await main(async () => {
  const args = process.argv.slice(2);
  await timed("set-up", () => setup({ tests: true }));
  const node = findNode24();
  if (node === undefined) throw new SetupError(missingNode24());
  rmSync(results, { recursive: true, force: true });
  mkdirSync(results, { recursive: true });
  const counts = [];
  if (args.length === 0) counts.push(await timed("native tests", () => nativeTests(join(root, "native", "build"))));
  counts.push(await timed("vitest", () => vitest(node, args)));
  const passed = counts.reduce((sum, count) => sum + count.passed, 0);
  const failed = counts.reduce((sum, count) => sum + count.failed, 0);
  if (failed > 0) process.exitCode = 1;
  process.stdout.write(`\n${passed} passed, ${failed} failed\n`);
});
