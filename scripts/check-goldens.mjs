// Goldens are data that a reference program made once (each folder holds the script that makes them); nothing may change
// them unnoticed. Every folder named `goldens` has a SHA256SUMS over all its files; `--write` renews the sums.
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const SUMS = "SHA256SUMS";
const skipped = /^(node_modules|\.git|\.cache|\.sluice|dist|coverage|__pycache__|build.*)$/;

/** All folders named `goldens` below `folder`. */
function goldenFolders(folder) {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    if (!entry.isDirectory() || skipped.test(entry.name)) return [];
    const path = join(folder, entry.name);
    return entry.name === "goldens" ? [path] : goldenFolders(path);
  });
}

/** Path below the folder -> sha256 hex. */
function digests(folder) {
  const files = readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name !== SUMS && !entry.parentPath.includes("__pycache__"))
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
  return new Map(
    files.map((file) => [relative(folder, file), createHash("sha256").update(readFileSync(file)).digest("hex")]),
  );
}

/** Faults of one folder, in words. */
export function checkGoldens(folder) {
  const sums = join(folder, SUMS);
  if (!existsSync(sums)) return [`${folder} has no ${SUMS}`];
  const listed = new Map(
    readFileSync(sums, "utf8")
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => [line.slice(66), line.slice(0, 64)]),
  );
  const found = digests(folder);
  const faults = [];
  for (const [name, digest] of found) {
    if (!listed.has(name)) faults.push(`${join(folder, name)} is not listed in ${SUMS}`);
    else if (listed.get(name) !== digest) faults.push(`${join(folder, name)} differs from ${SUMS}`);
  }
  for (const name of listed.keys()) if (!found.has(name)) faults.push(`${join(folder, name)} is listed but missing`);
  return faults;
}

/** The text `sha256sum -c` reads. */
export function sumsOf(folder) {
  return [...digests(folder)].map(([name, digest]) => `${digest}  ${name}\n`).join("");
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const root = dirname(dirname(fileURLToPath(import.meta.url)));
  const folders = goldenFolders(root);
  if (process.argv.includes("--write")) {
    for (const folder of folders) writeFileSync(join(folder, SUMS), sumsOf(folder));
  }
  const faults = folders.flatMap(checkGoldens);
  for (const fault of faults) process.stdout.write(`${relative(root, fault) || fault}\n`);
  process.stdout.write(`${folders.length} folders of goldens, ${faults.length} faults\n`);
  if (faults.length > 0) process.exitCode = 1;
}
