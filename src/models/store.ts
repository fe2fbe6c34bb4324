import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { withFileLock } from "./lock.ts";
import type { Pause } from "./pause.ts";
import type { OnModelProgress } from "./progress.ts";
import { formatModelReference, type ModelReference, modelFileName } from "./references.ts";

/** A model file in the store. */
export interface StoredModel {
  /** The folder's name: the file's name and a part of the reference's hash. */
  readonly key: string;
  readonly path: string;
  readonly bytes: number;
  readonly sha256: string;
  /** What it was brought by. */
  readonly reference: string;
}

const recordSchema = z.object({
  reference: z.string(),
  file: z.string().min(1),
  bytes: z.number().int().nonnegative(),
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
});

/** Written last, beside the file: a folder without it is an unfinished download. */
const RECORD = "model.json";

export interface StoreOptions {
  /** The folder of all models: `homeFolders().models`. */
  readonly folder: string;
  readonly pause: Pause;
  readonly signal: AbortSignal;
  readonly onProgress: OnModelProgress;
}

/** Brings a file: writes it to `part`, checks it and tells its size and hash. */
export type BringFile = (part: string) => Promise<{ readonly bytes: number; readonly sha256: string }>;

/** The stored file of `reference`, or undefined. A file whose size differs from its record counts as absent. */
export async function findModel(folder: string, reference: ModelReference): Promise<StoredModel | undefined> {
  const found = await readModel(folder, keyOf(reference));
  // The same source with another checksum asked for is another file.
  return reference.sha256 === undefined || found?.sha256 === reference.sha256 ? found : undefined;
}

/**
 * The stored file of `reference`; brought by `bring` where it is absent. Of several processes one brings it, the others
 * wait and use it. The file appears under its name only when it is complete (atomic rename).
 */
export async function storeModel(
  reference: ModelReference,
  options: StoreOptions,
  bring: BringFile,
): Promise<StoredModel> {
  const present = await findModel(options.folder, reference);
  if (present !== undefined) return present;
  const key = keyOf(reference);
  const folder = join(options.folder, key);
  await mkdir(folder, { recursive: true });
  const { pause, signal } = options;
  const onWait = (): void => options.onProgress({ phase: "wait", received: 0, total: undefined });
  // Beside the folder, so that removing a model cannot remove a lock that someone waits for.
  return withFileLock(`${folder}.lock`, { pause, signal, onWait }, async () => {
    const meanwhile = await findModel(options.folder, reference);
    if (meanwhile !== undefined) return meanwhile;
    const file = modelFileName(reference);
    const part = join(folder, `${file}.part`);
    const { bytes, sha256 } = await bring(part);
    await rename(part, join(folder, file));
    const record = { reference: formatModelReference(reference), file, bytes, sha256 };
    await writeFile(join(folder, `${RECORD}.tmp`), `${JSON.stringify(record, undefined, 2)}\n`);
    await rename(join(folder, `${RECORD}.tmp`), join(folder, RECORD));
    return { key, path: join(folder, file), bytes, sha256, reference: record.reference };
  });
}

/** All complete models, by key. */
export async function listModels(folder: string): Promise<StoredModel[]> {
  const names = await readdir(folder).catch((): string[] => []);
  const models = await Promise.all(names.sort().map((name) => readModel(folder, name)));
  return models.filter((model) => model !== undefined);
}

/** Removes a model and any unfinished download of it; false when there is none of this key. */
export async function removeModel(folder: string, key: string): Promise<boolean> {
  const names = await readdir(folder).catch((): string[] => []);
  // Only names that are there: a key is never a path.
  if (!names.includes(key)) return false;
  await rm(join(folder, key), { recursive: true });
  return true;
}

async function readModel(folder: string, key: string): Promise<StoredModel | undefined> {
  try {
    const record = recordSchema.parse(JSON.parse(await readFile(join(folder, key, RECORD), "utf8")));
    const path = join(folder, key, record.file);
    const { size } = await stat(path);
    if (size !== record.bytes) return undefined;
    return { key, path, bytes: size, sha256: record.sha256, reference: record.reference };
  } catch {
    return undefined;
  }
}

/** Readable and without collisions: two repositories may both have a `model.gguf`. The checksum is no part of the name. */
function keyOf(reference: ModelReference): string {
  const source = formatModelReference({ ...reference, sha256: undefined });
  const name = modelFileName(reference)
    .replace(/[^A-Za-z0-9._-]/g, "_")
    .slice(0, 80);
  return `${name}-${createHash("sha256").update(source).digest("hex").slice(0, 12)}`;
}
