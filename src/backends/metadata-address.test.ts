import { once } from "node:events";
import { createServer } from "node:net";
import { expect, it } from "vitest";
import { guardedLookup, isMetadataAddress, type Lookup } from "./metadata-address.ts";
import { openUndiciOrigin } from "./undici.ts";

it.each([
  "169.254.169.254",
  "169.254.170.2",
  "2852039166",
  "0xa9fea9fe",
  "0251.0376.0251.0376",
  "[::ffff:169.254.169.254]",
  "::ffff:a9fe:a9fe",
  "64:ff9b::a9fe:a9fe",
  "fe80::1%eth0",
  "[febf::1]",
  "fd00:ec2::254",
  "FD00:0EC2:0:0:0:0:0:0254",
  "fd20:ce::254",
  "100.100.100.200",
  "192.0.0.192",
  "168.63.129.16",
  "Metadata.Google.Internal.",
  "instance-data",
])("%s is instance metadata", (host) => {
  expect(isMetadataAddress(host)).toBe(true);
});

it.each([
  "127.0.0.1",
  "10.0.0.1",
  "[::1]",
  "fd00:1::254",
  "fec0::1",
  "100.100.100.201",
  "api.example.com",
  "::ffff:10.0.0.1",
])("%s may be an endpoint", (host) => {
  expect(isMetadataAddress(host)).toBe(false);
});

const answering =
  (...addresses: string[]): Lookup =>
  (_, options, done) => {
    const found = addresses.map((address) => ({ address, family: 4 }));
    if ("all" in options && options.all === true) done(null, found);
    else done(null, found[0]?.address ?? "", 4);
  };

it("a name that resolves to instance metadata is not connected to, whatever else it resolves to", async () => {
  const server = createServer();
  let connected = 0;
  server.on("connection", (socket) => {
    connected++;
    socket.destroy();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  const port = typeof address === "object" ? address?.port : 0;
  const signal = AbortSignal.timeout(5_000);
  const ask = async (lookup: Lookup) => {
    const origin = openUndiciOrigin(
      `http://engine.example:${port}`,
      { connectTimeoutMs: 1_000, connections: 1 },
      lookup,
    );
    const answer = origin.request({ method: "GET", path: "/", signal });
    await expect(answer).rejects.toMatchObject(
      lookup === good ? { code: "backend_unreachable" } : { code: "endpoint_refused", retryable: true },
    );
    await origin.close();
  };
  const good = answering("127.0.0.1");
  await ask(answering("169.254.169.254"));
  await ask(answering("127.0.0.1", "169.254.169.254"));
  expect(connected).toBe(0);
  await ask(good);
  expect(connected).toBe(1);
  server.close();
});

it("a resolver's own error passes", () => {
  const failed = Object.assign(new Error("no such host"), { code: "ENOTFOUND" });
  let seen: unknown;
  guardedLookup((_, __, done) => done(failed, ""))("nowhere", {}, (error) => {
    seen = error;
  });
  expect(seen).toBe(failed);
});
