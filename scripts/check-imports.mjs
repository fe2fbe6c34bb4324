// The import rule of the rooms (docs/contributing.md): who may import whom. A table of allowed edges; everything else is
// a fault. Prints each fault with its line and exits with 1.
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, posix, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";

/** Longest prefix wins. A room is a folder or a single file of src/. */
const rooms = [
  "cli",
  "gateway",
  "backends/daemon/server",
  "backends",
  "grammar",
  "tokenizer",
  "models",
  "engine",
  "config",
  "telemetry",
];

const everywhere = ["config", "telemetry", "base"];

/** room -> rooms it may import besides itself and `everywhere`. */
const allowed = {
  cli: ["gateway", "backends/daemon/server", "backends", "engine", "grammar", "tokenizer", "models"],
  gateway: ["backends", "grammar", "tokenizer", "models"],
  "backends/daemon/server": ["backends", "engine", "grammar", "tokenizer", "models"],
  backends: [],
  grammar: ["tokenizer"],
  tokenizer: ["models"],
  models: [],
  engine: [],
  config: [],
  telemetry: [],
  base: [],
};

/** Contracts: their types may be named by any room, their code by none but the allowed. */
const contracts = ["backends/backend.ts", "grammar/grammar.ts", "engine/engine.ts", "config/schema.ts"];

/** Small functions that both sides of the daemon protocol compute alike. */
const shared = ["grammar/mac.ts"];

/** Where a native addon may be loaded. The grammar's compiler runs in a child process that can be killed. */
const nativeLoaders = /^(engine\/|grammar\/xgrammar)/;

/** The room of a path below src/; the files directly in src/ (errors, clocks) are `base`. */
function roomOf(path) {
  // In backends/daemon the protocol and the client are the gateway's side; all else is the daemon, which only the CLI
  // starts.
  if (/^backends\/daemon\/(?!protocol|client)/.test(path)) return "backends/daemon/server";
  const found = rooms.filter((room) => path.startsWith(`${room}/`)).sort((a, b) => b.length - a.length)[0];
  if (found !== undefined) return found;
  if (!path.includes("/")) return "base";
  return undefined;
}

/** Module specifiers of a source text with their line and whether only types are taken. */
function imports(text) {
  const found = [];
  const add = (index, specifier, typeOnly) => {
    found.push({ line: text.slice(0, index).split("\n").length, specifier, typeOnly });
  };
  // Comments go, positions stay. `://` in a string is no comment.
  const code = text
    .replace(/\/\*[\s\S]*?\*\//g, (comment) => comment.replace(/[^\n]/g, " "))
    .replace(/(^|[^:"'`])\/\/[^\n]*/g, (comment, before) => before + " ".repeat(comment.length - before.length));
  for (const m of code.matchAll(/^\s*(?:import|export)\s+(type\s)?[^"';]*?\bfrom\s*"([^"]+)"/gm)) {
    add(m.index + m[0].lastIndexOf('"', m[0].length - 2), m[2], m[1] !== undefined);
  }
  for (const m of code.matchAll(/^\s*import\s*"([^"]+)"/gm)) add(m.index, m[1], false);
  for (const m of code.matchAll(/\bimport\(\s*"([^"]+)"/g)) add(m.index, m[1], false);
  for (const m of code.matchAll(/new URL\(\s*"([^"]+\.ts)"\s*,\s*import\.meta\.url/g)) add(m.index, m[1], false);
  for (const m of code.matchAll(/"[^"\n]*\.node"/g)) add(m.index, "native", false);
  return found;
}

/**
 * Faults of one file, as `path:line: message`.
 * @param {string} path below src/, with forward slashes
 * @param {string} text
 * @returns {string[]}
 */
export function checkImports(path, text) {
  const from = roomOf(path);
  if (from === undefined) return [`src/${path}:1: this folder is no room of the table in scripts/check-imports.mjs`];
  // A test starts what it needs, across the rooms.
  if (path.endsWith(".test.ts")) return [];
  const faults = [];
  for (const { line, specifier, typeOnly } of imports(text)) {
    const at = `src/${path}:${line}`;
    if (specifier === "native") {
      if (!nativeLoaders.test(path) && from !== "cli") {
        faults.push(`${at}: only engine/ and grammar/xgrammar may load a native addon`);
      }
      continue;
    }
    if (!specifier.startsWith(".")) continue;
    const target = posix.normalize(posix.join(posix.dirname(path), specifier));
    if (target.startsWith("..")) {
      if (!target.endsWith("package.json")) faults.push(`${at}: ${specifier} lies outside src/`);
      continue;
    }
    const to = roomOf(target);
    if (to === undefined || to === from || everywhere.includes(to)) continue;
    if (allowed[from].includes(to) || shared.includes(target)) continue;
    if (typeOnly && contracts.includes(target)) continue;
    faults.push(`${at}: ${from} may not import ${to} (${specifier})`);
  }
  return faults;
}

function sources(folder) {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith(".ts"))
    .map((entry) => join(entry.parentPath, entry.name));
}

if (process.argv[1] !== undefined && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const src = join(dirname(dirname(fileURLToPath(import.meta.url))), "src");
  const files = sources(src);
  const faults = files.flatMap((file) => {
    return checkImports(relative(src, file).replaceAll("\\", "/"), readFileSync(file, "utf8"));
  });
  for (const fault of faults) process.stdout.write(`${fault}\n`);
  process.stdout.write(`${files.length} files, ${faults.length} faults\n`);
  if (faults.length > 0) process.exitCode = 1;
}
