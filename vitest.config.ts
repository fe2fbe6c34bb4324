import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["src/**/*.test.ts", "test/**/*.test.ts"],
    // Each file owns its processes and ports; two workers, since some files load a model of their own.
    pool: "forks",
    maxWorkers: 2,
    // Bounds for what hangs, not for what is slow: a loaded machine may take ten times as long as a quiet one.
    testTimeout: 120_000,
    hookTimeout: 240_000,
    teardownTimeout: 60_000,
    expect: { poll: { timeout: 60_000 } },
  },
});
