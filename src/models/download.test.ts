import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { type DownloadOptions, download } from "./download.ts";
import type { ModelProgress } from "./progress.ts";

const servers: Server[] = [];
afterEach(async () => {
  for (const server of servers.splice(0)) {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  }
});

interface TestServer {
  readonly url: string;
  readonly requests: readonly IncomingMessage[];
  /** Ends all connections once that many bytes are in the part: no sooner, so that nothing on its way is lost. */
  readonly cutAt: (bytes: readonly number[]) => (progress: ModelProgress) => void;
}

/** A server of its own for each test; answers what was asked. */
async function serve(
  handle: (request: IncomingMessage, response: ServerResponse, count: number) => void,
): Promise<TestServer> {
  const requests: IncomingMessage[] = [];
  const server = createServer((request, response) => {
    requests.push(request);
    handle(request, response, requests.length);
  });
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  const cutAt: TestServer["cutAt"] = (bytes) => (progress) => {
    if (bytes.includes(progress.received)) server.closeAllConnections();
  };
  return { url: `http://127.0.0.1:${port}/model.gguf`, requests, cutAt };
}

const BODY = Buffer.from(Array.from({ length: 300_000 }, (_, index) => (index * 31 + (index >> 8)) & 255));
const sha256 = (data: Uint8Array): string => createHash("sha256").update(data).digest("hex");
const newPart = (): string => join(mkdtempSync(join(tmpdir(), "sluice-download-")), "model.gguf.part");

interface FileServer {
  readonly body?: Buffer;
  readonly etag?: string;
  /** Sends so many bytes and then nothing more, until the connection is cut. */
  readonly stallAfter?: number;
  /** Ends the connection after this many bytes. */
  readonly cutAfter?: number;
}

/** A server that knows Range and If-Range. */
function sendFile(
  request: IncomingMessage,
  response: ServerResponse,
  { body = BODY, etag = '"v1"', stallAfter, cutAfter }: FileServer = {},
): void {
  const wanted = /^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1];
  const condition = request.headers["if-range"];
  const start = wanted !== undefined && (condition === undefined || condition === etag) ? Number(wanted) : 0;
  if (start > 0 && start >= body.length) {
    response.writeHead(416, { "content-range": `bytes */${body.length}` }).end();
    return;
  }
  const rest = body.subarray(start);
  const headers: Record<string, string | number> = { etag, "content-length": rest.length };
  if (start > 0) headers["content-range"] = `bytes ${start}-${body.length - 1}/${body.length}`;
  response.writeHead(start > 0 ? 206 : 200, headers);
  if (stallAfter !== undefined) response.write(rest.subarray(0, stallAfter));
  else if (cutAfter === undefined) response.end(rest);
  else response.write(rest.subarray(0, cutAfter), () => response.destroy());
}

function options(url: string, part: string, more: Partial<DownloadOptions> = {}): DownloadOptions {
  return {
    url,
    part,
    sha256: sha256(BODY),
    maxBytes: 1e9,
    pause: (_, signal) => (signal.aborted ? Promise.reject(signal.reason) : Promise.resolve()),
    signal: new AbortController().signal,
    onProgress: () => undefined,
    ...more,
  };
}

describe("a download", () => {
  it("arrives whole, with progress up to its end", async () => {
    const { url } = await serve((request, response) => sendFile(request, response));
    const part = newPart();
    const seen: ModelProgress[] = [];
    const done = await download(options(url, part, { onProgress: (progress) => seen.push(progress) }));
    expect(done).toEqual({ bytes: BODY.length, sha256: sha256(BODY) });
    expect(readFileSync(part)).toEqual(BODY);
    expect(seen.at(-1)).toEqual({ phase: "download", received: BODY.length, total: BODY.length });
    expect(existsSync(`${part}.json`)).toBe(false);
  });

  it("goes on where the connection broke, and only there", async () => {
    const { url, requests, cutAt } = await serve((request, response, count) =>
      sendFile(request, response, count < 3 ? { stallAfter: 100_000 } : {}),
    );
    const part = newPart();
    await download(options(url, part, { onProgress: cutAt([100_000, 200_000]) }));
    expect(readFileSync(part)).toEqual(BODY);
    expect(requests.map(({ headers }) => headers.range)).toEqual([undefined, "bytes=100000-", "bytes=200000-"]);
    expect(requests[2]?.headers["if-range"]).toBe('"v1"');
  });

  it("goes on with the part that an ended process left", async () => {
    const part = newPart();
    const abort = new AbortController();
    const { url, requests } = await serve((request, response, count) =>
      sendFile(request, response, count === 1 ? { stallAfter: 120_000 } : {}),
    );
    const onProgress = ({ received }: ModelProgress): void => {
      if (received === 120_000) abort.abort(new Error("process ended"));
    };
    await expect(download(options(url, part, { signal: abort.signal, onProgress }))).rejects.toThrow("process ended");
    await download(options(url, part));
    expect(readFileSync(part)).toEqual(BODY);
    expect(requests[1]?.headers.range).toBe("bytes=120000-");
  });

  it("begins again when the server does not know ranges", async () => {
    const { url, requests, cutAt } = await serve((request, response, count) => {
      if (count > 1) delete request.headers.range;
      sendFile(request, response, count === 1 ? { stallAfter: 100_000 } : {});
    });
    const part = newPart();
    await download(options(url, part, { onProgress: cutAt([100_000]) }));
    expect(readFileSync(part)).toEqual(BODY);
    expect(requests).toHaveLength(2);
  });

  it("begins again when the file has changed in between", async () => {
    const newer = Buffer.from(BODY).fill(7, 0, 1000);
    const { url, cutAt } = await serve((request, response, count) =>
      sendFile(request, response, count === 1 ? { stallAfter: 100_000 } : { body: newer, etag: '"v2"' }),
    );
    const part = newPart();
    await download(options(url, part, { sha256: sha256(newer), onProgress: cutAt([100_000]) }));
    expect(readFileSync(part)).toEqual(newer);
  });

  it("notices a changed file even when the server ignores If-Range", async () => {
    const newer = Buffer.from(BODY).fill(7, 0, 1000);
    const { url, cutAt } = await serve((request, response, count) => {
      if (count > 1) delete request.headers["if-range"];
      sendFile(request, response, count === 1 ? { stallAfter: 100_000 } : { body: newer, etag: '"v2"' });
    });
    const part = newPart();
    await download(options(url, part, { sha256: undefined, onProgress: cutAt([100_000]) }));
    expect(readFileSync(part)).toEqual(newer);
  });

  it("does not continue a part of which nothing tells the version", async () => {
    const part = newPart();
    writeFileSync(part, "rubbish of unknown origin");
    const { url, requests } = await serve((request, response) => sendFile(request, response));
    await download(options(url, part, { sha256: undefined }));
    expect(readFileSync(part)).toEqual(BODY);
    expect(requests[0]?.headers.range).toBeUndefined();
  });

  it("finishes a part that was already complete", async () => {
    const part = newPart();
    const { url, requests } = await serve((request, response) => sendFile(request, response));
    writeFileSync(part, BODY);
    writeFileSync(`${part}.json`, JSON.stringify({ url, validator: '"v1"', total: BODY.length }));
    await download(options(url, part));
    expect(readFileSync(part)).toEqual(BODY);
    expect(requests).toHaveLength(1);
  });

  it("refuses a wrong checksum and leaves nothing to continue", async () => {
    const { url, requests } = await serve((request, response) => sendFile(request, response));
    const part = newPart();
    await expect(download(options(url, part, { sha256: "0".repeat(64) }))).rejects.toMatchObject({
      code: "model_checksum_mismatch",
    });
    expect(readFileSync(part)).toHaveLength(0);
    expect(requests).toHaveLength(1);
  });

  it("does not take a body that ends early for the file", async () => {
    const { url } = await serve((request, response) => {
      delete request.headers.range;
      sendFile(request, response, { cutAfter: 1000 });
    });
    await expect(download(options(url, newPart()))).rejects.toMatchObject({
      code: "model_source_failed",
      retryable: true,
    });
  });

  it("tries again while the server is busy, as long as it asks, and gives up in the end", async () => {
    const waits: number[] = [];
    const busy = await serve((request, response, count) => {
      if (count <= 2) response.writeHead(503, { "retry-after": "3" }).end();
      else sendFile(request, response);
    });
    const record = (ms: number): Promise<void> => {
      waits.push(ms);
      return Promise.resolve();
    };
    await download(options(busy.url, newPart(), { pause: record }));
    expect(waits).toEqual([3000, 3000]);

    waits.length = 0;
    const dead = await serve((_, response) => response.writeHead(500).end());
    await expect(download(options(dead.url, newPart(), { pause: record }))).rejects.toThrow(
      /answers 500; gave up after 5 tries/,
    );
    expect(waits).toEqual([500, 1000, 2000, 4000]);
  });

  it.each([
    [404, "model_not_found"],
    [410, "model_not_found"],
    [401, "model_access_denied"],
    [403, "model_access_denied"],
    [400, "model_source_failed"],
  ])("ends at once on a %i", async (status, code) => {
    const { url, requests } = await serve((_, response) => response.writeHead(status).end("x"));
    await expect(download(options(url, newPart()))).rejects.toMatchObject({ code });
    expect(requests).toHaveLength(1);
  });

  it("is refused before its first byte when it is too large, and stopped when the size was not told", async () => {
    const told = await serve((request, response) => sendFile(request, response));
    const part = newPart();
    await expect(download(options(told.url, part, { maxBytes: 1000 }))).rejects.toMatchObject({
      code: "model_too_large",
    });
    expect(readFileSync(part)).toHaveLength(0);
    const untold = await serve((_, response) => {
      response.writeHead(200);
      response.end(BODY);
    });
    await expect(download(options(untold.url, part, { maxBytes: 1000 }))).rejects.toMatchObject({
      code: "model_too_large",
    });
  });

  it("is refused before its first byte when the disk has no room for it", async () => {
    const { url } = await serve((_, response) => {
      response.writeHead(200, { "content-length": String(2 ** 52) });
      response.write("x");
    });
    await expect(download(options(url, newPart(), { maxBytes: 2 ** 53 }))).rejects.toMatchObject({ code: "disk_full" });
  });

  it("ends with the signal's reason when it is given up", async () => {
    const abort = new AbortController();
    const { url } = await serve((_, response) => {
      response.writeHead(200, { "content-length": BODY.length });
      response.write(BODY.subarray(0, 1000));
    });
    const reason = new Error("given up");
    const running = download(options(url, newPart(), { signal: abort.signal, onProgress: () => abort.abort(reason) }));
    await expect(running).rejects.toBe(reason);
  });
});

describe("redirects", () => {
  it("are followed to another host, which does not get the token", async () => {
    const store = await serve((request, response) => sendFile(request, response));
    const hub = await serve((_, response) =>
      response.writeHead(302, { location: store.url, "x-linked-etag": `"${sha256(BODY)}"` }).end(),
    );
    const part = newPart();
    await download(options(hub.url, part, { token: "secret", sha256: undefined }));
    expect(readFileSync(part)).toEqual(BODY);
    expect(hub.requests[0]?.headers.authorization).toBe("Bearer secret");
    expect(store.requests[0]?.headers.authorization).toBeUndefined();
  });

  it("may state the checksum, which then counts", async () => {
    const store = await serve((request, response) => sendFile(request, response));
    const hub = await serve((_, response) =>
      response.writeHead(302, { location: store.url, "x-linked-etag": `"${"1".repeat(64)}"` }).end(),
    );
    await expect(download(options(hub.url, newPart(), { sha256: undefined }))).rejects.toMatchObject({
      code: "model_checksum_mismatch",
    });
  });

  it("end after five", async () => {
    const { url, requests } = await serve((request, response) =>
      response.writeHead(307, { location: `${request.url}x` }).end(),
    );
    await expect(download(options(url, newPart()))).rejects.toThrow("more than 5 redirects");
    expect(requests).toHaveLength(6);
  });

  it.each(["http://example.com/model.gguf", "file:///etc/passwd", "ftp://127.0.0.1/x", "http://[bad"])(
    "to %s are refused",
    async (location) => {
      const { url } = await serve((_, response) => response.writeHead(302, { location }).end());
      await expect(download(options(url, newPart()))).rejects.toMatchObject({ code: "model_source_failed" });
    },
  );
});
