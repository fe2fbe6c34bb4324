import { randomBytes } from "node:crypto";
import { mkdir, readFile, rename, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { homeFolders } from "../config/home.ts";
import { CommandError } from "./exit.ts";

/** Written whole or not at all: a reader never sees half a file. */
export async function writeAtomically(path: string, text: string, mode = 0o600): Promise<void> {
  const staging = `${path}.${process.pid}.tmp`;
  await writeFile(staging, text, { mode });
  await rename(staging, path);
}

/** The key of this home's `development` tenant; made on first use, readable by its owner only. */
export async function developmentKey(): Promise<string> {
  const { state } = homeFolders();
  await mkdir(state, { recursive: true, mode: 0o700 });
  const path = join(state, "development-key");
  try {
    const [key, { mode }] = await Promise.all([readFile(path, "utf8"), stat(path)]);
    if ((mode & 0o077) !== 0) {
      throw new CommandError(`${path} is readable by others: run \`chmod 600 ${path}\`, or delete it for a new key.`);
    }
    if (key.trim().length >= 16) return key.trim();
  } catch (error) {
    if (error instanceof CommandError) throw error;
  }
  const key = `sk-sluice-${randomBytes(24).toString("base64url")}`;
  await writeAtomically(path, `${key}\n`);
  return key;
}
