import { createHash } from "node:crypto";
import { mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { loadConfig } from "../../config/load.ts";
import { byteTokenizerFiles } from "../testing/tokenizer.ts";
import { type RunningGateway, startGateway } from "./node.ts";

const key = "sk-node";
const keyHash = `sha256:${createHash("sha256").update(key).digest("hex")}`;
// A port that nothing listens on: the gateway has to live without its backends.
const yaml = (model: string, more = ""): string => `
listen: {port: 0}
models: {${model}: {pools: [east], tokenizer: "file:tokenizer.json"}}
pools: {east: {backend: daemon, endpoints: ["http://127.0.0.1:1"]}}
tenants: {acme: {keys: ["${keyHash}"]}}
${more}`;

let folder: string;
let file: string;
let log: Array<Record<string, unknown>>;
let gateway: RunningGateway | undefined;
let logged: () => void = () => {};

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "sluice-gateway-"));
  file = join(folder, "sluice.yaml");
  log = [];
  const { tokenizer, config } = byteTokenizerFiles();
  await writeFile(join(folder, "tokenizer.json"), tokenizer);
  await writeFile(join(folder, "tokenizer_config.json"), config);
});
afterEach(async () => {
  await gateway?.close(0);
  gateway = undefined;
  await rm(folder, { recursive: true, force: true });
});

async function start(text: string): Promise<RunningGateway> {
  await writeFile(file, text);
  const write = (line: string): void => {
    log.push(JSON.parse(line));
    logged();
  };
  gateway = await startGateway({ config: await loadConfig(file), configPath: file, write });
  return gateway;
}

/** In one piece: a gateway that reads half of a file refuses it. */
async function replace(text: string): Promise<void> {
  await writeFile(`${file}.new`, text);
  await rename(`${file}.new`, file);
}

async function untilLogged(event: string): Promise<Record<string, unknown>> {
  for (;;) {
    const found = log.find((entry) => entry.event === event);
    if (found !== undefined) return found;
    await new Promise<void>((resolve) => {
      logged = resolve;
    });
  }
}

const models = async (url: string): Promise<string[]> => {
  const response = await fetch(`${url}/v1/models`, { headers: { authorization: `Bearer ${key}` } });
  return ((await response.json()) as { data: Array<{ id: string }> }).data.map(({ id }) => id);
};

test("a gateway whose backends are away lives, is not ready, and says so to callers", async () => {
  const { url } = await start(yaml("tiny"));
  expect((await fetch(`${url}/healthz`)).status).toBe(200);
  expect((await fetch(`${url}/readyz`)).status).toBe(503);
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${key}` },
    body: JSON.stringify({ model: "tiny", messages: [{ role: "user", content: "Hi" }] }),
  });
  expect(response.status).toBe(503);
  expect(response.headers.get("retry-after")).toBe("1");
});

test("a changed file is put in force without a restart; a bad one is refused with its path and the running one stays", async () => {
  const { url } = await start(yaml("tiny"));
  await replace(yaml("small"));
  await untilLogged("config_applied");
  expect(await models(url)).toEqual(["small"]);
  await replace(yaml("large", "colour: red"));
  expect(await untilLogged("config_refused")).toMatchObject({ path: "colour", level: "error" });
  expect(await models(url)).toEqual(["small"]);
});

test("a new file whose model cannot be opened changes nothing", async () => {
  const { url } = await start(yaml("tiny"));
  await replace(yaml("large").replace("file:tokenizer.json", "file:none.json"));
  await untilLogged("config_refused");
  expect(await models(url)).toEqual(["tiny"]);
});

test("a port that is taken keeps it from starting, and says so", async () => {
  const { port } = await start(yaml("tiny"));
  const config = await loadConfig(file);
  const second = startGateway({ config: { ...config, listen: { host: "127.0.0.1", port } }, write: () => {} });
  await expect(second).rejects.toMatchObject({ code: "port_taken" });
});

test("closing does not wait for connections that only lie idle", async () => {
  const running = await start(yaml("tiny"));
  const socket = connect(running.port, "127.0.0.1");
  await new Promise<void>((resolve) => socket.once("connect", () => resolve()));
  const closed = new Promise<void>((resolve) => socket.once("close", () => resolve()));
  const before = performance.now();
  await running.close(120_000);
  await closed;
  expect(performance.now() - before).toBeLessThan(60_000);
});
