import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { z } from "zod";

const dependencies = z.record(z.string(), z.string()).default({});
const manifest = z.object({ dependencies, devDependencies: dependencies, optionalDependencies: dependencies });
const lockfile = z.object({
  packages: z.record(
    z.string(),
    z.looseObject({
      version: z.string().optional(),
      resolved: z.string().optional(),
      dependencies,
      optionalDependencies: dependencies,
    }),
  ),
});

const read = (name: string): unknown => JSON.parse(readFileSync(new URL(`../../${name}`, import.meta.url), "utf8"));
const { packages } = lockfile.parse(read("package-lock.json"));

/** Where Node would find `name` from the package at `path`. */
function locate(path: string, name: string): string | undefined {
  for (let at = path; ; at = at.slice(0, Math.max(0, at.lastIndexOf("node_modules/") - 1))) {
    const candidate = `${at === "" ? "" : `${at}/`}node_modules/${name}`;
    if (packages[candidate] !== undefined) return candidate;
    if (at === "") return undefined;
  }
}

describe("the lockfile", () => {
  it("names no registry", () => {
    expect(Object.keys(packages).filter((path) => packages[path]?.resolved !== undefined)).toEqual([]);
  });

  // A lock made behind a registry that lacks some platforms leaves their packages out, and `npm ci` then refuses it.
  it("holds every dependency, also those of other platforms", () => {
    const missing = Object.entries(packages).flatMap(([path, entry]) =>
      Object.keys({ ...entry.dependencies, ...entry.optionalDependencies })
        .filter((name) => locate(path, name) === undefined)
        .map((name) => `${path || "the project"} needs ${name}`),
    );
    expect(missing).toEqual([]);
  });

  it("goes with exact versions in package.json", () => {
    const { dependencies: run, devDependencies, optionalDependencies } = manifest.parse(read("package.json"));
    for (const [name, version] of Object.entries({ ...run, ...devDependencies, ...optionalDependencies })) {
      expect(version, name).toMatch(/^\d+\.\d+\.\d+$/);
      expect(packages[`node_modules/${name}`]?.version, name).toBe(version);
    }
  });
});
