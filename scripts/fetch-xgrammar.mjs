// Brings the sources of the XGrammar core (Apache-2.0): the PyPI sdist by name, version and digest, unpacked under
// .cache/xgrammar. Plain JavaScript for Node >= 20, since it runs before Node 24 is there. Idempotent: a second run
// only reads a stamp.
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

export const XGRAMMAR = Object.freeze({
  version: "0.2.8",
  archive: "xgrammar-0.2.8.tar.gz",
  sha256: "8305646fd2b319d6c3003f51a1665e54cbbe9cba1fb636bc41d0b46434ccbb80",
  bytes: 2_689_558,
});

const ATTEMPTS = 3;
const ATTEMPT_TIMEOUT_MS = 120_000;

function digest(file) {
  return createHash("sha256").update(readFileSync(file)).digest("hex");
}

/** Runs a program and resolves with its exit code and the end of its output. Rejects when it cannot be started. */
function run(program, args, cwd) {
  return new Promise((done, fail) => {
    const child = spawn(program, args, { cwd, stdio: ["ignore", "pipe", "pipe"], timeout: ATTEMPT_TIMEOUT_MS });
    let output = "";
    const keep = (chunk) => {
      output = (output + chunk).slice(-4000);
    };
    child.stdout.on("data", keep);
    child.stderr.on("data", keep);
    child.on("error", (cause) => fail(new Error(`${program} could not be started: ${cause.message}`)));
    child.on("close", (code, signal) => done({ ok: code === 0, output, how: signal ?? `exit code ${code}` }));
  });
}

async function download(folder) {
  const file = join(folder, XGRAMMAR.archive);
  if (existsSync(file) && digest(file) === XGRAMMAR.sha256) return file;
  rmSync(file, { force: true });
  const partial = join(folder, `download-${process.pid}`);
  let last = "";
  try {
    for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
      rmSync(partial, { recursive: true, force: true });
      mkdirSync(partial, { recursive: true });
      const pip = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"];
      const what = ["--no-binary", "xgrammar", "--dest", partial, `xgrammar==${XGRAMMAR.version}`];
      const result = await run("python3", [...pip, ...what], folder);
      const got = join(partial, XGRAMMAR.archive);
      // pip may fail after the download, when it tries to read the build's metadata: the archive is what counts.
      if (existsSync(got)) {
        const found = digest(got);
        if (found === XGRAMMAR.sha256) {
          renameSync(got, file);
          return file;
        }
        throw new Error(
          `${XGRAMMAR.archive} has sha256 ${found}, expected ${XGRAMMAR.sha256}. ` +
            "The package index served something else: check the index that pip uses.",
        );
      }
      last = `${result.how}\n${result.output.trim()}`;
    }
  } finally {
    rmSync(partial, { recursive: true, force: true });
  }
  throw new Error(
    `pip could not bring xgrammar ${XGRAMMAR.version} in ${ATTEMPTS} attempts. ` +
      `It needs python3 with pip and a reachable package index. Last attempt: ${last}`,
  );
}

/**
 * Resolves with the folder of the unpacked sources.
 * @param {string} root the repository's root
 */
export async function fetchXgrammar(root) {
  const folder = join(root, ".cache", "xgrammar");
  const source = join(folder, `xgrammar-${XGRAMMAR.version}`);
  const stamp = join(source, ".sluice-sha256");
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === XGRAMMAR.sha256) return source;
  mkdirSync(folder, { recursive: true });
  const archive = await download(folder);
  const staging = join(folder, `unpack-${process.pid}`);
  rmSync(staging, { recursive: true, force: true });
  mkdirSync(staging);
  try {
    const result = await run("tar", ["-xzf", archive, "-C", staging], folder);
    if (!result.ok) throw new Error(`tar could not unpack ${archive}: ${result.how}\n${result.output.trim()}`);
    const unpacked = join(staging, `xgrammar-${XGRAMMAR.version}`);
    writeFileSync(join(unpacked, ".sluice-sha256"), XGRAMMAR.sha256);
    // Renaming last: an interrupted run leaves no half-unpacked folder behind that looks whole.
    rmSync(source, { recursive: true, force: true });
    renameSync(unpacked, source);
  } finally {
    rmSync(staging, { recursive: true, force: true });
  }
  return source;
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const root = dirname(dirname(fileURLToPath(import.meta.url)));
  try {
    process.stdout.write(`${await fetchXgrammar(root)}\n`);
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
    process.exitCode = 1;
  }
}
