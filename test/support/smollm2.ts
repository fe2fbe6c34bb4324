import { fileURLToPath } from "node:url";
import { homeFolders } from "../../src/config/home.ts";
import { resolveModel } from "../../src/models/index.ts";

/** The small real model's path, where `npm test` put it; brings it when it is not there. */
export async function smollm2(): Promise<string> {
  const home = process.env.SLUICE_HOME ?? fileURLToPath(new URL("../../.sluice", import.meta.url));
  const { models: folder } = homeFolders({ SLUICE_HOME: home });
  return (await resolveModel("smollm2", { signal: AbortSignal.timeout(300_000), folder })).path;
}
