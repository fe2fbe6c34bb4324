// Runs the native test binaries of a build folder: node scripts/test-native.mjs [FOLDER]. The last line is
// `N passed, N failed`.
import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { runToEnd } from "../bin/node24.mjs";
import { cores, main, root } from "./run.mjs";
import { readJunit } from "./test-results.mjs";

/**
 * @param {string} folder a CMake build folder
 * @returns {Promise<{ passed: number, failed: number }>}
 */
export async function nativeTests(folder) {
  const report = join(root, ".cache", "test", `native-${process.pid}.xml`);
  mkdirSync(join(root, ".cache", "test"), { recursive: true });
  const args = ["--test-dir", folder, "--output-on-failure", "--no-tests=error", "-j", String(cores)];
  // Whole outputs, since the counts stand at their end.
  const whole = ["--test-output-size-passed", "4000000", "--test-output-size-failed", "4000000"];
  const code = await runToEnd("ctest", [...args, ...whole, "--timeout", "900", "--output-junit", report]);
  const counts = readJunit(existsSync(report) ? readFileSync(report, "utf8") : "", code);
  rmSync(report, { force: true });
  return counts;
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  await main(async () => {
    const { passed, failed } = await nativeTests(resolve(process.argv[2] ?? join(root, "native", "build")));
    if (failed > 0) process.exitCode = 1;
    process.stdout.write(`\n${passed} passed, ${failed} failed\n`);
  });
}
