import { readFileSync } from "node:fs";
import { beforeAll, describe, expect, it } from "vitest";
import { resolveModel } from "../models/index.ts";
import { loadTokenizer, type Tokenizer } from "./index.ts";
import { openTokenizer } from "./node.ts";

/** Made by test/goldens/tokenizer/make_goldens.py with HF `tokenizers`. */
interface Goldens {
  /** A text, or a unit and how often it is repeated. */
  readonly texts: Readonly<Record<string, string | readonly [string, number]>>;
  readonly suites: readonly Suite[];
}

interface Suite {
  readonly name: string;
  readonly file: string | null;
  readonly replace: Readonly<Record<string, unknown>>;
  readonly model: Readonly<Record<string, unknown>>;
  readonly ids: Readonly<Record<string, readonly number[]>>;
}

const folder = new URL("../../test/goldens/tokenizer/", import.meta.url);
const read = (name: string): string => readFileSync(new URL(name, folder), "utf8");
const goldens: Goldens = JSON.parse(read("goldens.json"));

function textOf(name: string): string {
  const entry = goldens.texts[name] ?? "";
  return typeof entry === "string" ? entry : entry[0].repeat(entry[1]);
}

async function open(suite: Suite): Promise<Tokenizer> {
  if (suite.file === null) {
    const { path } = await resolveModel("smollm2", { signal: AbortSignal.timeout(300_000) });
    return openTokenizer(`gguf:${path}`);
  }
  const file = JSON.parse(read(suite.file));
  const changed = { ...file, ...suite.replace, model: { ...file.model, ...suite.model } };
  return loadTokenizer({ kind: "tokenizer.json", tokenizer: JSON.stringify(changed) });
}

describe.each(goldens.suites)("ids of $name equal HF tokenizers'", (suite) => {
  let tokenizer: Tokenizer;
  beforeAll(async () => {
    tokenizer = await open(suite);
  }, 300_000);

  it.each(Object.keys(suite.ids))("on %s", (name) => {
    expect(Array.from(tokenizer.encode(textOf(name)))).toEqual(suite.ids[name]);
  });

  it("again when every piece is remembered", () => {
    for (const [name, ids] of Object.entries(suite.ids))
      expect(Array.from(tokenizer.encode(textOf(name)))).toEqual(ids);
  });
});

describe("decoding what was encoded", () => {
  // Normalisers, removed matches, added spaces and SmolLM2's missing bytes lose text by design.
  const lossless = goldens.suites.filter(({ name }) =>
    ["bytelevel", "llama3 ignore merges", "gpt4o", "digits"].includes(name),
  );
  it.each(lossless)("gives the text back with $name", async (suite) => {
    const tokenizer = await open(suite);
    for (const name of Object.keys(goldens.texts)) {
      expect(tokenizer.decode(tokenizer.encode(textOf(name)))).toBe(textOf(name).toWellFormed());
    }
  });
});
