import { resolve } from "node:path";
import { homeFolders } from "../config/home.ts";
import * as store from "../models/index.ts";
import { progress } from "./output.ts";

/**
 * Path of a model on this machine, brought first where it is not there. Throws SluiceError when it cannot be brought, or
 * the signal's reason.
 */
export async function bringModel(reference: string, signal?: AbortSignal): Promise<string> {
  const phases = {
    wait: "waiting for another process",
    download: "downloading",
    verify: "checking",
    unpack: "unpacking",
  };
  let bar: ReturnType<typeof progress> | undefined;
  let phase: store.ModelProgress["phase"] | undefined;
  const onProgress = (now: store.ModelProgress) => {
    if (now.phase !== phase) {
      bar?.end();
      bar = progress(`${phases[now.phase]} ${reference}`);
      phase = now.phase;
    }
    const megabytes = `${(now.received / 1e6).toFixed(0)} MB`;
    if (now.total !== undefined && now.total > 0) bar?.update(now.received / now.total, megabytes);
  };
  try {
    const found = await store.resolveModel(reference, { signal: signal ?? new AbortController().signal, onProgress });
    return resolve(found.path);
  } finally {
    bar?.end();
  }
}

/** Rows of `model list`: known names, then whatever else is in the store. */
export async function listModels(): Promise<string[][]> {
  const stored = await store.listModels(homeFolders().models);
  const size = (bytes: number) => `${(bytes / 1e6).toFixed(0)} MB`;
  const known = store.CATALOG.map(({ name, reference, bytes, licence }) => {
    const source = store.formatModelReference(reference);
    const here = stored.find((model) => model.reference === source);
    return [name, here === undefined ? "not here" : "here", size(bytes), licence, here?.path ?? source];
  });
  const names = new Set(store.CATALOG.map(({ reference }) => store.formatModelReference(reference)));
  const others = stored
    .filter(({ reference }) => !names.has(reference))
    .map(({ reference, bytes, path }) => [reference, "here", size(bytes), "", path]);
  return [["MODEL", "STATE", "SIZE", "LICENCE", "WHERE"], ...known, ...others];
}

/** For `doctor`: is it in the store? */
export async function checkModel(name: string): Promise<{ readonly present: boolean; readonly detail: string }> {
  const path = await store.locateModel(name);
  return path === undefined
    ? { present: false, detail: `not here; bring it with \`sluice model pull ${name}\`` }
    : { present: true, detail: path };
}
