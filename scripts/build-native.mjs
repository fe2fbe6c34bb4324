// Builds native/ with CMake. Plain JavaScript for Node >= 20.
//
//   node scripts/build-native.mjs [--all] [--debug | --sanitize] [--cuda] [--force]
//
//   (nothing)    the two addons, into native/build; what a running Sluice needs
//   --all        tools and test binaries as well
//   --debug      unoptimised with symbols, into native/build-debug
//   --sanitize   tools and test binaries under address + undefined behaviour, into native/build-sanitize
//   --cuda       adds the CUDA backend, into native/build-cuda
//   --force      builds even when the stamp says that nothing changed
//
// What was built before is not built again: the XGrammar archive and the addons are kept in .cache/native under a hash of
// their sources, flags and compiler, so a change of branch and a CI machine with a restored .cache cost nothing.
import { createHash } from "node:crypto";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { fetchXgrammar, XGRAMMAR } from "./fetch-xgrammar.mjs";
import { progressBar } from "./progress.mjs";
import { cores, main, root, run, SetupError, works } from "./run.mjs";

const native = join(root, "native");
const cache = join(root, ".cache", "native");
const ADDONS = ["sluice_engine.node", "sluice_grammar.node"];
const compiler = process.env.CXX ?? "c++";

const kinds = {
  release: { folder: "build", flags: [] },
  debug: { folder: "build-debug", flags: ["-DCMAKE_BUILD_TYPE=Debug"] },
  sanitize: { folder: "build-sanitize", flags: ["-DSLUICE_SANITIZE=ON", "-DSLUICE_ADDONS=OFF"] },
  cuda: { folder: "build-cuda", flags: ["-DSLUICE_CUDA=ON"], more: ["sluice_cuda"] },
};

/** Says at once everything that is missing, with the names of the Debian packages. */
export async function checkToolchain() {
  const missing = [];
  if (!(await works(compiler, ["--version"]))) missing.push(["a C++20 compiler", "g++"]);
  if (!(await works("cmake", ["--version"]))) missing.push(["CMake >= 3.25", "cmake"]);
  if (!(await works("ninja", ["--version"])) && !(await works("make", ["--version"]))) missing.push(["make", "make"]);
  if (!(await works("python3", ["-m", "pip", "--version"]))) missing.push(["python3 with pip", "python3-pip"]);
  if (missing.length === 0) return;
  const what = missing.map(([name]) => name).join(", ");
  const packages = missing.map(([, name]) => name).join(" ");
  throw new SetupError(`Missing on this machine: ${what}.\nOn Debian or Ubuntu: apt-get install ${packages}`);
}

/** Every source file under native/ that takes part, in a fixed order. */
function sourceFiles(withTests) {
  const skip = (name) => name.startsWith("build") || (!withTests && (name === "tests" || name === "tools"));
  const files = [];
  const walk = (folder, top) => {
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      if (top && skip(entry.name)) continue;
      const path = join(folder, entry.name);
      if (entry.isDirectory()) walk(path, false);
      else if (/\.(cc|cpp|h|hpp|inl|cu|cuh|cmake)$|CMakeLists\.txt$/.test(entry.name)) files.push(path);
    }
  };
  walk(native, true);
  return files.sort();
}

let compilerId;
async function toolchainId() {
  compilerId ??= `${await run(compiler, ["--version"])}${process.platform}-${process.arch}${process.env.CXXFLAGS ?? ""}`;
  return compilerId;
}

function packageVersion(name) {
  const file = join(root, "node_modules", name, "package.json");
  return existsSync(file) ? JSON.parse(readFileSync(file, "utf8")).version : "none";
}

async function contentHash(kind, withTests) {
  const hash = createHash("sha256");
  hash.update([await toolchainId(), XGRAMMAR.sha256, ...kinds[kind].flags].join("\0"));
  hash.update(`${packageVersion("node-addon-api")} ${packageVersion("node-api-headers")}`);
  for (const file of sourceFiles(withTests)) hash.update(`\0${relative(root, file)}\0`).update(readFileSync(file));
  return hash.digest("hex").slice(0, 24);
}

function readStamp(file) {
  return existsSync(file) ? readFileSync(file, "utf8") : "";
}

/** A folder keeps the generator it was configured with: CMake refuses to change it. */
async function generatorFor(folder) {
  const cached = readStamp(join(folder, "CMakeCache.txt")).match(/^CMAKE_GENERATOR:INTERNAL=(.*)$/m);
  if (cached?.[1]) return cached[1];
  return (await works("ninja", ["--version"])) ? "Ninja" : "Unix Makefiles";
}

/** Configures `folder` and builds `targets` (all when empty). */
async function cmake(folder, flags, targets, label) {
  await run("cmake", ["-S", native, "-B", folder, "-G", await generatorFor(folder), ...flags]);
  const bar = progressBar(label);
  const only = targets.length > 0 ? ["--target", ...targets] : [];
  try {
    await run("cmake", ["--build", folder, "-j", String(cores), ...only], {
      env: { ...process.env, NINJA_STATUS: "[%f/%t] " },
      onLine: (line) => {
        const counted = line.match(/^\[(\d+)\/(\d+)\]/);
        const percent = line.match(/^\[\s*(\d+)%\]/);
        if (counted) bar.update(Number(counted[1]) / Number(counted[2]));
        else if (percent) bar.update(Number(percent[1]) / 100);
      },
    });
  } finally {
    bar.end();
  }
}

/** The XGrammar core, compiled once for each (sources, flags, compiler). Resolves with the archive's path. */
async function xgrammarArchive(source) {
  const hash = createHash("sha256")
    .update([XGRAMMAR.sha256, await toolchainId()].join("\0"))
    .update(readFileSync(join(native, "xgrammar.cmake")))
    .digest("hex")
    .slice(0, 24);
  const folder = join(cache, `xgrammar-${hash}`);
  const archive = join(folder, "libxgrammar_core.a");
  if (existsSync(archive)) return archive;
  const build = join(folder, "build");
  const flags = [`-DSLUICE_XGRAMMAR_SOURCE=${source}`, "-DSLUICE_ADDONS=OFF", "-DCMAKE_BUILD_TYPE=Release"];
  await cmake(build, flags, ["xgrammar_core"], "grammar core");
  renameSync(join(build, "libxgrammar_core.a"), archive);
  rmSync(build, { recursive: true, force: true });
  return archive;
}

function copyAll(from, to, names) {
  mkdirSync(to, { recursive: true });
  for (const name of names) {
    // By rename: a process that has the old addon mapped keeps its file.
    const staging = join(to, `.${name}.${process.pid}`);
    copyFileSync(join(from, name), staging);
    renameSync(staging, join(to, name));
  }
}

/**
 * Resolves with `up to date`, `from the cache` or `built`.
 * @param {{ kind?: keyof typeof kinds, all?: boolean, force?: boolean }} [options]
 */
export async function buildNative(options = {}) {
  const kind = options.kind ?? "release";
  const all = options.all === true || kind === "sanitize";
  const folder = join(native, kinds[kind].folder);
  const hash = await contentHash(kind, all);
  const addonHash = await contentHash(kind, false);
  const stamp = join(folder, all ? ".sluice-all" : ".sluice-addons");
  const present = kind === "sanitize" || ADDONS.every((name) => existsSync(join(folder, name)));
  if (options.force !== true && present && readStamp(stamp) === hash) return "up to date";

  const kept = join(cache, `${kind}-${addonHash}`);
  if (!all && options.force !== true && ADDONS.every((name) => existsSync(join(kept, name)))) {
    copyAll(kept, folder, ADDONS);
    writeFileSync(stamp, hash);
    return "from the cache";
  }

  await checkToolchain();
  const source = await fetchXgrammar(root);
  const archive = await xgrammarArchive(source);
  const flags = [`-DSLUICE_XGRAMMAR_SOURCE=${source}`, `-DSLUICE_XGRAMMAR_ARCHIVE=${archive}`, ...kinds[kind].flags];
  const targets = [...ADDONS.map((name) => name.replace(/\.node$/, "")), ...(kinds[kind].more ?? [])];
  await cmake(folder, flags, all ? [] : targets, "native engine");
  if (kind !== "sanitize") {
    copyAll(folder, kept, ADDONS);
    writeFileSync(join(folder, ".sluice-addons"), addonHash);
  }
  writeFileSync(stamp, hash);
  return "built";
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  await main(async () => {
    const flags = new Set(process.argv.slice(2));
    const kind = ["debug", "sanitize", "cuda"].find((name) => flags.delete(`--${name}`)) ?? "release";
    const options = { kind, all: flags.delete("--all"), force: flags.delete("--force") };
    if (flags.size > 0) throw new SetupError(`Unknown option ${[...flags].join(" ")}`);
    process.stderr.write(`  native engine (${kind}): ${await buildNative(options)}\n`);
  });
}
