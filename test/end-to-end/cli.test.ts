import { mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Ajv } from "ajv";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { sluice, startUp } from "../support/up.ts";

describe("the sluice command", () => {
  let folder: string;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "sluice-cli-"));
  });

  afterAll(async () => {
    await rm(folder, { recursive: true, force: true });
  });

  const config = (pool: string) => `
models: {small: {pools: [${pool}], tokenizer: "gguf:small.gguf"}}
pools: {near: {backend: daemon, endpoints: ["http://127.0.0.1:8100"]}}
tenants: {}
`;

  it.each([
    "up",
    "gateway",
    "daemon",
    "generate",
    "model pull",
    "model list",
    "config check",
    "config schema",
    "doctor",
  ])("explains %s with an example", async (command) => {
    const { code, stdout } = await sluice([...command.split(" "), "--help"]);
    expect(code).toBe(0);
    expect(stdout).toContain("Examples:");
    expect(stdout).toContain(`sluice ${command}`);
  });

  it.each([
    ["no command", []],
    ["an unknown command", ["fly"]],
    ["an unknown option", ["up", "--fast"]],
    ["a number that is none", ["up", "--port", "eighty"]],
    ["a missing argument", ["config", "check"]],
  ])("ends with 64 on %s and prints no stack trace", async (_, args) => {
    const { code, stderr } = await sluice(args);
    expect(code).toBe(64);
    expect(stderr).not.toMatch(/^\s+at /m);
  });

  it("passes a good configuration", async () => {
    const file = join(folder, "good.yaml");
    await writeFile(file, config("near"));
    expect(await sluice(["config", "check", file])).toMatchObject({ code: 0, stderr: "" });
  });

  it("names the path of a configuration's fault", async () => {
    const file = join(folder, "bad.yaml");
    await writeFile(file, config("far"));
    const { code, stderr } = await sluice(["config", "check", file]);
    expect(code).toBe(65);
    expect(stderr).toContain("models.small.pools[0]");
    expect(stderr).not.toMatch(/^\s+at /m);
  });

  it("prints a JSON Schema of the configuration that takes the good file", async () => {
    const { code, stdout } = await sluice(["config", "schema"]);
    expect(code).toBe(0);
    expect(Object.keys(JSON.parse(stdout).properties)).toEqual(expect.arrayContaining(["models", "pools", "tenants"]));
  });

  it("says plainly that a model is not there", async () => {
    const { code, stderr } = await sluice(["daemon", "--port", "0", "--model", join(folder, "none.gguf")]);
    expect(code).toBe(69);
    expect(stderr).toContain("none.gguf");
    expect(stderr).not.toMatch(/^\s+at /m);
  });

  it("refuses a file that is no model without a stack trace", async () => {
    const file = join(folder, "not-a-model.gguf");
    await writeFile(file, "this is no GGUF");
    const { code, stderr } = await sluice(["daemon", "--port", "0", "--model", file]);
    expect(code).not.toBe(0);
    expect(stderr).not.toMatch(/^\s+at /m);
  });

  it("lists the models it knows", async () => {
    const { code, stdout } = await sluice(["model", "list"]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^smollm2 +here/m);
  });

  it("finds this machine in order", async () => {
    const { code, stdout } = await sluice(["doctor"]);
    expect(stdout).not.toMatch(/^fail/m);
    expect(code).toBe(0);
  });

  const schema = {
    type: "object",
    properties: { colour: { enum: ["red", "green", "blue"] }, count: { type: "integer", minimum: 0, maximum: 9 } },
    required: ["colour", "count"],
    additionalProperties: false,
  };

  it("generates an answer that matches a schema, without any server", async () => {
    const file = join(folder, "schema.json");
    await writeFile(file, JSON.stringify(schema));
    const { code, stdout } = await sluice(["generate", "--schema", file, "--max-tokens", "64", "Three red balls."]);
    expect(code).toBe(0);
    const validate = new Ajv().compile(schema);
    validate(JSON.parse(stdout));
    expect(validate.errors ?? []).toEqual([]);
  });

  it("gives a running gateway's answer equal to its own", async () => {
    const args = ["--max-tokens", "24", "Name a river."];
    const up = await startUp();
    try {
      const here = await sluice(["generate", ...args]);
      const there = await sluice(["generate", "--url", `${up.ready.url}/v1`, ...args]);
      expect(here.code).toBe(0);
      expect(there.code).toBe(0);
      expect(there.stdout).toBe(here.stdout);
    } finally {
      await up.end();
    }
  }, 300_000);

  it("refuses a schema that cannot be kept, by path", async () => {
    const unique = JSON.stringify({ type: "array", items: { type: "integer" }, uniqueItems: true });
    const { code, stderr } = await sluice(["generate", "--schema", unique, "x"]);
    expect(code).toBe(65);
    expect(stderr).toContain("uniqueItems");
  });

  it("keeps the development key to its owner", async () => {
    const home = join(folder, "home");
    const { code } = await sluice(["generate", "--url", "http://127.0.0.1:9", "x"], { env: { SLUICE_HOME: home } });
    expect(code).toBe(69);
    expect((await stat(join(home, "development-key"))).mode & 0o777).toBe(0o600);
  });
});
