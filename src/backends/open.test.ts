import { once } from "node:events";
import { createServer } from "node:http";
import { expect, it } from "vitest";
import { poolsConfig } from "../../test/support/prepared.ts";
import { collect, generationRequest } from "../../test/support/requests.ts";
import { backendId, backendOpener } from "./open.ts";
import { openUndiciOrigin } from "./undici.ts";

const never = new AbortController().signal;

function openerFor(endpoint: string, changes: Record<string, unknown> = {}, env: Record<string, string> = {}) {
  const pool = poolsConfig({ east: [endpoint] }, changes).pools.east;
  if (pool === undefined) throw new Error("no pool");
  return () =>
    backendOpener({ openHttp: openUndiciOrigin, env: (name) => env[name] })({ poolName: "east", pool, endpoint });
}

it.each([
  "http://169.254.169.254/latest",
  "http://[fd00:ec2::254]:80",
  "http://metadata.google.internal",
  "http://[fe80::1]:8100",
  "http://2852039166:8100",
])("an endpoint that is a metadata address is refused: %s", (endpoint) => {
  expect(openerFor(endpoint)).toThrow(expect.objectContaining({ code: "invalid_endpoint" }));
});

it.each([{}, { POOL_KEY: "" }])("a key that the environment lacks is told by its name", (env) => {
  expect(openerFor("http://127.0.0.1:1", { key: { env: "POOL_KEY" } }, env)).toThrow(/no POOL_KEY/);
});

it("the key goes with every call, below the endpoint's path; a redirect is not followed", async () => {
  const seen: Array<string | undefined> = [];
  const server = createServer((request, response) => {
    seen.push(`${request.method} ${request.url} ${request.headers.authorization}`);
    response.writeHead(302, { location: `http://127.0.0.1:${port}/elsewhere` }).end();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  const port = typeof address === "object" ? address?.port : undefined;
  const open = openerFor(`http://127.0.0.1:${port}/gpu/`, { key: { env: "POOL_KEY" } }, { POOL_KEY: "secret" });
  const backend = open();
  await expect(collect(backend.generate(generationRequest(), never))).rejects.toMatchObject({
    code: "backend_error",
    status: 502,
  });
  await expect(backend.info(never)).rejects.toMatchObject({ code: "backend_error" });
  expect(seen).toEqual(["POST /gpu/v1/streams Bearer secret", "GET /gpu/v1/info Bearer secret"]);
  await backend.close();
  server.close();
});

it("a backend's name is its pool and its endpoint", () => {
  expect(backendId({ poolName: "east", endpoint: "http://10.0.0.1:8100/" })).toBe("east/10.0.0.1:8100");
  expect(backendId({ poolName: "east", endpoint: "http://10.0.0.1:8100/b" })).toBe("east/10.0.0.1:8100/b");
});
