// Reads what the two test runners report. A runner that broke counts as one failure even when every test it got to
// passed: a summary must never look better than its exit code.

function settle(passed, failed, exitCode) {
  return { passed, failed: exitCode !== 0 && failed === 0 ? 1 : failed };
}

/**
 * @param {string} text vitest's JSON report, empty when none was written
 * @param {number} exitCode
 */
export function readVitest(text, exitCode) {
  if (text === "") return settle(0, 0, exitCode === 0 ? 1 : exitCode);
  const report = JSON.parse(text);
  // A file that cannot even be loaded has no tests to count.
  const broken = report.testResults.filter((file) => file.status === "failed" && file.assertionResults.length === 0);
  // Skipped and unfinished tests prove nothing: they count as failed.
  const unproved = report.numTotalTests - report.numPassedTests;
  return settle(report.numPassedTests, unproved + broken.length, exitCode);
}

/**
 * Each test program says `N passed, N failed` for the tests inside; one that says nothing (a crash, a time-out) failed.
 * @param {string} text ctest's JUnit report
 * @param {number} exitCode
 */
export function readJunit(text, exitCode) {
  let passed = 0;
  let failed = 0;
  const programs = text.match(/<testcase [\s\S]*?<\/testcase>/g) ?? [];
  for (const program of programs) {
    const ran = /^<testcase [^>]*\bstatus="run"/.test(program);
    const said = [...program.matchAll(/(?:^|>)(\d+) passed, (\d+) failed\b/gm)].at(-1);
    const inside = said === undefined ? { passed: 0, failed: 1 } : { passed: Number(said[1]), failed: Number(said[2]) };
    passed += inside.passed;
    failed += ran ? inside.failed : Math.max(1, inside.failed);
  }
  return settle(passed, failed, exitCode === 0 && programs.length === 0 ? 1 : exitCode);
}
