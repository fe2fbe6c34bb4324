import { watch } from "node:fs";
import { basename, dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { asSluiceError, type SluiceError } from "../errors.ts";
import { loadConfig } from "./load.ts";
import type { Config } from "./schema.ts";

export interface ReloadOptions {
  readonly file: string;
  readonly environment: Readonly<Record<string, string | undefined>>;
  /** Puts the new configuration in force. What it throws refuses the file just as a fault in it does. */
  readonly apply: (config: Config) => Promise<void>;
  readonly onRefused: (error: SluiceError) => void;
}

export interface Reloader {
  /** Reads the file now; resolves when it is in force or refused. Runs one after another. */
  reload(): Promise<void>;
  close(): void;
}

/** Editors write a file in several steps; reading between two of them would see half of it. */
const settleMs = 50;

/**
 * Follows the configuration file: on SIGHUP and when the file changes it is read again. A bad file is refused and the
 * running configuration stays.
 */
export function followConfig(options: ReloadOptions): Reloader {
  const closed = new AbortController();
  let last: Promise<void> = Promise.resolve();
  const once = async (): Promise<void> => {
    try {
      await options.apply(await loadConfig(options.file, options.environment));
    } catch (error) {
      options.onRefused(asSluiceError(error));
    }
  };
  const reload = (): Promise<void> => {
    last = last.then(once);
    return last;
  };

  let pending = false;
  const changed = async (): Promise<void> => {
    if (pending) return;
    pending = true;
    try {
      await sleep(settleMs, undefined, { signal: closed.signal, ref: false });
      pending = false;
      await reload();
    } catch {
      // Closed while waiting.
    }
  };
  const hangup = (): void => void reload();
  process.on("SIGHUP", hangup);
  // The folder, not the file: editors and Kubernetes replace the file, and a watch on it would follow the old one.
  const name = basename(options.file);
  const watcher = watch(dirname(options.file), { persistent: false }, (_, changedName) => {
    if (changedName === name || changedName === "..data") void changed();
  });
  // A folder that goes away ends the watch; SIGHUP still works.
  watcher.on("error", () => watcher.close());
  return {
    reload,
    close() {
      closed.abort();
      process.off("SIGHUP", hangup);
      watcher.close();
    },
  };
}
