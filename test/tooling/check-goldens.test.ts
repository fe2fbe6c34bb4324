import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { checkGoldens, sumsOf } from "../../scripts/check-goldens.mjs";

describe("the check of the goldens", () => {
  let folder: string;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "goldens-"));
    writeFileSync(join(folder, "a.bin"), "reference");
    writeFileSync(join(folder, "SHA256SUMS"), sumsOf(folder));
  });

  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  it("passes what its sums say", () => {
    expect(checkGoldens(folder)).toEqual([]);
  });

  it("finds a golden that was changed", () => {
    writeFileSync(join(folder, "a.bin"), "reference!");
    expect(checkGoldens(folder)).toEqual([expect.stringContaining("differs")]);
  });

  it("finds one that was added, and one that is gone", () => {
    writeFileSync(join(folder, "b.bin"), "new");
    expect(checkGoldens(folder)).toEqual([expect.stringContaining("not listed")]);
    rmSync(join(folder, "a.bin"));
    expect(checkGoldens(folder)).toHaveLength(2);
  });

  it("finds a folder without sums", () => {
    rmSync(join(folder, "SHA256SUMS"));
    expect(checkGoldens(folder)).toEqual([expect.stringContaining("has no SHA256SUMS")]);
  });
});
