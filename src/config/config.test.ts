import { mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Ajv2020 } from "ajv/dist/2020.js";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { SluiceError } from "../errors.ts";
import { configJsonSchema } from "./json-schema.ts";
import { loadConfig } from "./load.ts";
import { parseConfig } from "./parse.ts";
import { followConfig } from "./reload.ts";
import type { Config } from "./schema.ts";

const hash = `sha256:${"ab".repeat(32)}`;
const good = `
models:
  smol: {pools: [east], tokenizer: gguf:models/smol.gguf}
pools:
  east:
    backend: daemon
    endpoints: [http://127.0.0.1:8100]
    deadlines: {firstToken: 2s}
tenants:
  acme: {keys: ["${hash}"]}
`;

let folder: string;
let file: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "sluice-config-"));
  file = join(folder, "sluice.yaml");
});
afterEach(() => rm(folder, { recursive: true, force: true }));

test("a file is read with defaults filled in and its relative paths made absolute", async () => {
  await writeFile(file, good);
  const config = await loadConfig(file);
  expect(config.models.smol).toMatchObject({
    tokenizer: `gguf:${join(folder, "models/smol.gguf")}`,
    defaultMaxTokens: 1024,
  });
  expect(config.pools.east?.deadlines).toMatchObject({ firstToken: 2_000, connect: 1_000 });
  expect(config.listen).toEqual({ host: "127.0.0.1", port: 8080 });
});

test("JSON is as good as YAML", async () => {
  await writeFile(file, JSON.stringify({ models: {}, pools: {}, tenants: {} }));
  await expect(loadConfig(file)).resolves.toMatchObject({ models: {} });
});

test("a missing file is said to be missing", async () => {
  await expect(loadConfig(join(folder, "none.yaml"))).rejects.toMatchObject({ code: "invalid_config" });
});

describe("a fault is refused with its path", () => {
  const table: Array<{ name: string; text: string; path: string | undefined; says: RegExp }> = [
    { name: "broken YAML", text: "models: [", path: undefined, says: /Not valid YAML/ },
    { name: "a key twice", text: `${good}\npools: {}`, path: undefined, says: /Not valid YAML/ },
    {
      name: "an unknown setting",
      text: good.replace("listen", "x").concat("colour: red\n"),
      path: "colour",
      says: /not a setting/,
    },
    {
      name: "an unknown setting deep inside",
      text: good.replace("firstToken", "firstTokn"),
      path: "pools.east.deadlines.firstTokn",
      says: /not a setting/,
    },
    {
      name: "a duration without a unit",
      text: good.replace("2s", '"2"'),
      path: "pools.east.deadlines.firstToken",
      says: /duration/,
    },
    {
      name: "an endpoint that is no URL",
      text: good.replace("http://127.0.0.1:8100", "east"),
      path: "pools.east.endpoints[0]",
      says: /./,
    },
    {
      name: "a pool that is not there",
      text: good.replace("pools: [east]", "pools: [west]"),
      path: "models.smol.pools[0]",
      says: /west/,
    },
    {
      name: "a split over a pool that the model does not have",
      text: good.replace("pools: [east]", "pools: [east], split: {east: 1, west: 1}"),
      path: "models.smol.split.west",
      says: /not one of the model's pools/,
    },
    {
      name: "a split without any weight",
      text: good.replace("pools: [east]", "pools: [east], split: {east: 0}"),
      path: "models.smol.split",
      says: /weight/,
    },
    {
      name: "a shadow pool that is not there",
      text: good.replace("pools: [east]", "pools: [east], shadow: {pool: west, fraction: 0.1}"),
      path: "models.smol.shadow.pool",
      says: /west/,
    },
    {
      name: "a shadow pool that answers callers",
      text: good.replace("pools: [east]", "pools: [east], shadow: {pool: east, fraction: 0.1}"),
      path: "models.smol.shadow.pool",
      says: /callers/,
    },
    {
      name: "a fallback round a refusal for the content",
      text: good.replace("pools: [east]", "pools: [east], fallback: {on: [timeout, content_policy_violation]}"),
      path: "models.smol.fallback.on[1]",
      says: /never routed round/,
    },
    {
      name: "a fallback rule that is none",
      text: good.replace("pools: [east]", "pools: [east], fallback: {on: [sometimes]}"),
      path: "models.smol.fallback.on[0]",
      says: /expected a status .* timeout, overload/,
    },
    {
      name: "a hedge without a time",
      text: good.replace("backend: daemon", "backend: daemon\n    hedge: {after: soon}"),
      path: "pools.east.hedge.after",
      says: /p95/,
    },
    {
      name: "a key that is no hash",
      text: good.replace(hash, "sk-plain"),
      path: "tenants.acme.keys[0]",
      says: /sha256/,
    },
    {
      name: "a secret that the environment lacks",
      text: good.replace("backend: daemon", "backend: daemon\n    key: {env: NO_SUCH_SECRET}"),
      path: "pools.east.key.env",
      says: /NO_SUCH_SECRET/,
    },
  ];
  test.each(table)("$name", ({ text, path, says }) => {
    const error = refused(() => parseConfig(text, {}));
    expect(error.param).toBe(path);
    expect(error.message).toMatch(says);
    if (path !== undefined) expect(error.message).toContain(path);
  });

  test("and all faults are told at once", () => {
    const error = refused(() => parseConfig(good.replace("2s", "two").replace("daemon", "demon"), {}));
    expect(error.message).toContain("pools.east.backend");
    expect(error.message).toContain("pools.east.deadlines.firstToken");
  });

  test("nested aliases cannot unfold without bound", () => {
    const bomb = `a: &a [${"x,".repeat(9)}x]\n${Array.from({ length: 9 }, (_, i) => `${"bcdefghij"[i]}: &${"bcdefghij"[i]} [${`*${"abcdefghi"[i]},`.repeat(9)}*${"abcdefghi"[i]}]`).join("\n")}\n`;
    expect(() => parseConfig(bomb, {})).toThrow();
  });
});

test("every example in the documentation is a configuration", async () => {
  const text = await readFile(new URL("../../docs/configuration.md", import.meta.url), "utf8");
  const examples = [...text.matchAll(/```yaml\n(.*?)```/gs)].map(([, yaml]) => yaml ?? "");
  expect(examples.length).toBeGreaterThanOrEqual(2);
  const environment = { POOL_KEY: "p", SPARE_KEY: "s" };
  const [, full] = examples.map((example) => parseConfig(example, environment));
  expect(full?.models.assistant).toMatchObject({
    split: { east: 90, canary: 10 },
    shadow: { pool: "trial", fraction: 0.02, concurrency: 4, total: 60_000 },
  });
  expect(full?.pools.east?.hedge).toEqual({ after: "p95", max: 0.05 });
});

test("what the documentation calls the default is the default", () => {
  const { models, pools } = parseConfig(good, {});
  expect(models.smol?.fallback.on).toEqual([
    "timeout",
    "overload",
    "5xx",
    "connect",
    "context_length_exceeded",
    "capability_missing",
  ]);
  expect(models.smol).not.toHaveProperty("split");
  expect(models.smol).not.toHaveProperty("shadow");
  expect(pools.east).not.toHaveProperty("hedge");
});

function refused(work: () => unknown): SluiceError {
  try {
    work();
  } catch (error) {
    return error as SluiceError;
  }
  throw new Error("it was accepted");
}

test("the exported JSON Schema accepts what the loader accepts and refuses what it refuses", () => {
  const validate = new Ajv2020({ strict: false, validateFormats: false }).compile(configJsonSchema());
  const pool = { backend: "daemon", endpoints: ["http://127.0.0.1:1"] };
  const config = { models: { a: { pools: ["p"], tokenizer: "gguf:x" } }, pools: { p: pool }, tenants: {} };
  expect(validate(config), JSON.stringify(validate.errors)).toBe(true);
  expect(validate({ ...config, colour: "red" })).toBe(false);
  expect(validate({ ...config, pools: { p: { ...pool, deadlines: { connect: 5 } } } })).toBe(false);
});

describe("while it runs", () => {
  /** The next configuration put in force, or the next refusal. */
  function follower() {
    const seen: Array<Config | SluiceError> = [];
    let wake = (): void => {};
    const tell = (what: Config | SluiceError): void => {
      seen.push(what);
      wake();
    };
    const reloader = followConfig({ file, environment: {}, apply: async (config) => tell(config), onRefused: tell });
    const next = async (): Promise<Config | SluiceError> => {
      while (seen.length === 0) await new Promise<void>((resolve) => (wake = resolve));
      return seen.shift() as Config | SluiceError;
    };
    return { reloader, next, seen };
  }

  test("a changed file comes into force, also when an editor replaces it", async () => {
    await writeFile(file, good);
    const { reloader, next } = follower();
    await writeFile(file, good.replace("2s", "3s"));
    expect(await next()).toMatchObject({ pools: { east: { deadlines: { firstToken: 3_000 } } } });
    await writeFile(`${file}.new`, good.replace("2s", "4s"));
    await rename(`${file}.new`, file);
    expect(await next()).toMatchObject({ pools: { east: { deadlines: { firstToken: 4_000 } } } });
    reloader.close();
  });

  test("a bad file is refused with its path, and the next good one is taken", async () => {
    await writeFile(file, good);
    const { reloader, next } = follower();
    await writeFile(file, good.replace("2s", "soon"));
    expect(await next()).toMatchObject({ code: "invalid_config", param: "pools.east.deadlines.firstToken" });
    await writeFile(file, good);
    expect(await next()).toMatchObject({ pools: { east: { deadlines: { firstToken: 2_000 } } } });
    reloader.close();
  });

  test("SIGHUP reads it again", async () => {
    await writeFile(file, good);
    const { reloader, next } = follower();
    process.emit("SIGHUP");
    expect(await next()).toMatchObject({ tenants: { acme: {} } });
    reloader.close();
  });
});
