import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createTestHarness } from "wrangler";

const require = createRequire(import.meta.url);
const key = "sk-worker";

const config = `
models: {tiny: {pools: [east], tokenizer: "gguf:model.gguf"}}
pools: {east: {backend: daemon, endpoints: ["https://daemon.example"]}}
tenants: {acme: {keys: ["sha256:${createHash("sha256").update(key).digest("hex")}"]}}
`;

describe("the gateway as a Worker, bundled by wrangler and run by workerd", () => {
  let folder: string;
  let server: ReturnType<typeof createTestHarness>;
  let url: string;

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "sluice-worker-"));
    process.env.XDG_CONFIG_HOME = folder;
    process.env.WRANGLER_SEND_METRICS = "false";
    const wrangler = join(require.resolve("wrangler/package.json"), "..", "bin", "wrangler.js");
    await promisify(execFile)(process.execPath, [wrangler, "deploy", "--dry-run", "--outdir", folder]);
    const worker = { configPath: "wrangler.toml", prebuiltWorkerDir: folder, vars: { SLUICE_CONFIG: config } };
    server = createTestHarness({ workers: [worker] });
    url = (await server.listen()).url.origin;
  });
  afterAll(async () => {
    await server?.close();
    await rm(folder, { recursive: true, force: true });
  });

  const get = (path: string, authorization?: string): Promise<Response> =>
    fetch(url + path, authorization === undefined ? {} : { headers: { authorization } });

  test("lives", async () => {
    const response = await get("/healthz");
    expect(response.status).toBe(200);
    expect(await response.json()).toEqual({ status: "ok" });
  });

  test("knows its tenants and models", async () => {
    expect((await get("/v1/models")).status).toBe(401);
    expect(await (await get("/v1/models", `Bearer ${key}`)).json()).toMatchObject({ data: [{ id: "tiny" }] });
  });

  test("is not ready and says plainly what it cannot do", async () => {
    expect((await get("/readyz")).status).toBe(503);
    const response = await fetch(`${url}/v1/chat/completions`, {
      method: "POST",
      headers: { authorization: `Bearer ${key}` },
      body: JSON.stringify({ model: "tiny", messages: [{ role: "user", content: "Hi" }] }),
    });
    expect(response.status).toBe(501);
    expect(response.headers.get("x-should-retry")).toBe("false");
    expect(await response.json()).toMatchObject({ error: { code: "not_available_here", type: "server_error" } });
  });

  test("checks bodies as on Node, and counts", async () => {
    const response = await fetch(`${url}/v1/chat/completions`, {
      method: "POST",
      headers: { authorization: `Bearer ${key}` },
      body: JSON.stringify({ model: "tiny", messages: [{ role: "user", content: 7 }] }),
    });
    expect(await response.json()).toMatchObject({ error: { code: "invalid_type", param: "messages[0].content" } });
    expect(await (await get("/metrics")).text()).toContain('sluice_errors_total{error="invalid_type"} 1');
  });
});
