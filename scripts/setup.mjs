// Brings a clone to the point where Sluice runs: packages, native engine, model. Each step looks first whether its
// result is current, so a second run takes a fraction of a second. Plain JavaScript for Node >= 20.
import { existsSync, mkdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { basename, dirname, join, relative, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { findNode24, missingNode24, runToEnd } from "../bin/node24.mjs";
import { buildNative, checkToolchain } from "./build-native.mjs";
import { step } from "./progress.mjs";
import { main, root, run, SetupError } from "./run.mjs";

/** Where models, keys and caches of this clone live unless the caller says otherwise. */
export function sluiceHome() {
  return process.env.SLUICE_HOME ?? join(root, ".sluice");
}

/** The model that `sluice up` serves when none is named. */
const DEFAULT_MODEL = "smollm2";

/**
 * True when every package of the lock that belongs on this machine lies in node_modules in the locked version. npm keeps
 * its own account of what it installed; a killed install leaves none.
 */
function packagesAreCurrent() {
  const account = join(root, "node_modules", ".package-lock.json");
  if (!existsSync(account)) return false;
  const installed = JSON.parse(readFileSync(account, "utf8")).packages;
  const locked = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")).packages;
  return Object.entries(locked).every(([path, entry]) => {
    if (path === "") return true;
    const found = installed[path];
    if (found === undefined) return entry.optional === true || entry.devOptional === true || entry.peer === true;
    return found.version === entry.version && found.integrity === entry.integrity;
  });
}

async function installPackages() {
  if (packagesAreCurrent()) return "up to date";
  // No package needs its install script: esbuild and workerd find their binaries in their optional packages.
  // Engine warnings are silenced since tools run under the pinned Node 24, not under the Node that installs.
  const args = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
  await run("npm", args);
  return "installed";
}

/** A path that stays the same whatever the store calls its folders: native tests and benchmarks open the model there. */
function linkModel(path) {
  const link = join(sluiceHome(), "models", basename(path));
  if (link === path || existsSync(link)) return;
  rmSync(link, { force: true });
  symlinkSync(relative(dirname(link), path), link);
}

async function bringModel() {
  const stamp = join(root, ".cache", "setup", "model.json");
  if (existsSync(stamp)) {
    // Size and time, not the digest: hashing 98 MB would cost every start half a second. `sluice doctor` checks it.
    const known = JSON.parse(readFileSync(stamp, "utf8"));
    const found = existsSync(known.path) ? statSync(known.path) : undefined;
    if (known.home === sluiceHome() && found?.size === known.size && found?.mtimeMs === known.mtimeMs) {
      return "up to date";
    }
  }
  const node = findNode24();
  if (node === undefined) throw new SetupError(missingNode24());
  const result = join(root, ".cache", "setup", "model-path.txt");
  mkdirSync(join(root, ".cache", "setup"), { recursive: true });
  rmSync(result, { force: true });
  const command = [join(root, "bin", "sluice.mjs"), "model", "pull", DEFAULT_MODEL, "--write-path", result];
  const code = await runToEnd(node, command, { env: { ...process.env, SLUICE_HOME: sluiceHome() } });
  if (code !== 0) throw new SetupError(`The model ${DEFAULT_MODEL} could not be brought (exit code ${code}).`);
  const path = readFileSync(result, "utf8").trim();
  linkModel(path);
  const { size, mtimeMs } = statSync(path);
  writeFileSync(stamp, JSON.stringify({ home: sluiceHome(), path, size, mtimeMs }));
  return "ready";
}

function alive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

/** One set-up at a time in a clone: two builds in one folder break each other. */
async function withLock(work) {
  const lock = join(root, ".cache", "setup.lock");
  mkdirSync(join(root, ".cache"), { recursive: true });
  for (let told = false; ; ) {
    try {
      writeFileSync(lock, String(process.pid), { flag: "wx" });
      break;
    } catch (error) {
      if (error.code !== "EEXIST") throw error;
    }
    const holder = existsSync(lock) ? Number(readFileSync(lock, "utf8")) : 0;
    // 0: the holder is just writing its id, or has just left.
    if (holder > 0 && !alive(holder)) rmSync(lock, { force: true });
    else {
      if (!told) process.stderr.write(`  another set-up is running here (process ${holder}): waiting\n`);
      told = true;
      await sleep(250);
    }
  }
  try {
    return await work();
  } finally {
    rmSync(lock, { force: true });
  }
}

/**
 * @param {{ tests?: boolean }} [options] `tests`: build the native tools and test binaries too
 */
export async function setup(options = {}) {
  await withLock(async () => {
    if (!packagesAreCurrent()) await checkToolchain();
    await step("packages", installPackages);
    if (findNode24() === undefined) throw new SetupError(missingNode24());
    await step("native engine", () => buildNative({ all: options.tests === true }));
    await step("model", bringModel);
  });
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  await main(() => setup());
}
