import { describe, expect, it } from "vitest";
import { readJunit, readVitest } from "../../scripts/test-results.mjs";

const report = (total: number, passed: number, files: readonly object[] = []) =>
  JSON.stringify({ numTotalTests: total, numPassedTests: passed, testResults: files });

describe("the summary of the test runs", () => {
  it("counts vitest's tests", () => {
    expect(readVitest(report(5, 5), 0)).toEqual({ passed: 5, failed: 0 });
    expect(readVitest(report(5, 3), 1)).toEqual({ passed: 3, failed: 2 });
  });

  it("counts a skipped test as failed", () => {
    expect(readVitest(report(5, 4), 0)).toEqual({ passed: 4, failed: 1 });
  });

  it("counts a file that does not load as failed", () => {
    expect(readVitest(report(2, 2, [{ status: "failed", assertionResults: [] }]), 1)).toEqual({ passed: 2, failed: 1 });
  });

  it("counts a runner that broke as failed, report or not", () => {
    expect(readVitest(report(2, 2), 1)).toEqual({ passed: 2, failed: 1 });
    expect(readVitest("", 0)).toEqual({ passed: 0, failed: 1 });
    expect(readJunit("", 8)).toEqual({ passed: 0, failed: 1 });
  });

  const program = (status: string, output: string) =>
    `<testcase name="x" classname="x" time="1" status="${status}"><properties/><system-out>${output}</system-out></testcase>`;

  it("counts the tests inside the native programs", () => {
    const report = `<testsuite tests="2">${program("run", "ok  a\n3 passed, 0 failed\n")}${program("fail", "FAIL b\n4 passed, 2 failed\n")}</testsuite>`;
    expect(readJunit(report, 8)).toEqual({ passed: 7, failed: 2 });
  });

  it("counts a native program that crashed as failed", () => {
    expect(readJunit(`<testsuite>${program("fail", "Segmentation fault")}</testsuite>`, 8)).toEqual({
      passed: 0,
      failed: 1,
    });
    expect(readJunit(`<testsuite>${program("fail", "2 passed, 0 failed")}</testsuite>`, 8)).toEqual({
      passed: 2,
      failed: 1,
    });
  });
});
