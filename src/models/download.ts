import { createHash, type Hash } from "node:crypto";
import { createReadStream } from "node:fs";
import { type FileHandle, open, readFile, rm, statfs, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import { z } from "zod";
import { modelFault, writeFault } from "./fault.ts";
import { requestSource, type SourceResponse, TransientFault } from "./http-source.ts";
import type { Pause } from "./pause.ts";
import type { OnModelProgress } from "./progress.ts";

export interface DownloadOptions {
  readonly url: string;
  /** The unfinished file; what stands there from an earlier try is continued. Its twin `PART.json` says of which version it is. */
  readonly part: string;
  readonly sha256: string | undefined;
  /** Refused before the first byte where the server tells the size, else as soon as it is exceeded. */
  readonly maxBytes: number;
  readonly token?: string | undefined;
  readonly pause: Pause;
  readonly signal: AbortSignal;
  readonly onProgress: OnModelProgress;
}

export interface Downloaded {
  readonly bytes: number;
  readonly sha256: string;
}

/** Tries in a row that bring not one byte; a try that brings some starts the count again. */
const FRUITLESS_TRIES = 5;
/** All tries: a bound for a server that sends a byte and hangs up. */
const ALL_TRIES = 100;
const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 15_000;

const partStateSchema = z.object({ url: z.string(), validator: z.string().optional(), total: z.number().optional() });
type PartState = z.output<typeof partStateSchema>;

/**
 * Downloads into `part`, resuming by Range + If-Range where an earlier try ended, and checks the sha256. On return the
 * part is complete and on disk; the caller moves it to its place. Throws SluiceError: model_not_found,
 * model_access_denied, model_too_large, model_checksum_mismatch (the part is deleted), disk_full, model_source_failed
 * (the part stays for the next try); or the signal's reason.
 */
export async function download(options: DownloadOptions): Promise<Downloaded> {
  const file = await open(options.part, "a+").catch((error: unknown) => {
    throw writeFault(error, options.part);
  });
  try {
    const transfer = await Transfer.begin(file, options);
    await transfer.run();
    return await transfer.finish();
  } finally {
    await file.close();
  }
}

class Transfer {
  readonly #file: FileHandle;
  readonly #options: DownloadOptions;
  #state: PartState;
  /** Over the first `#received` bytes of the part. */
  #hash: Hash;
  #received: number;
  #sha256: string | undefined;

  private constructor(file: FileHandle, options: DownloadOptions, state: PartState, hash: Hash, received: number) {
    this.#file = file;
    this.#options = options;
    this.#state = state;
    this.#hash = hash;
    this.#received = received;
    this.#sha256 = options.sha256;
  }

  static async begin(file: FileHandle, options: DownloadOptions): Promise<Transfer> {
    const state = await readState(options);
    const { size } = await file.stat();
    const hash = createHash("sha256");
    // Without a version to ask for and without a checksum nothing could tell that the two halves belong together.
    const resumable = state !== undefined && (state.validator !== undefined || options.sha256 !== undefined);
    if (!resumable || size === 0) {
      await file.truncate(0);
      return new Transfer(file, options, { url: options.url }, hash, 0);
    }
    for await (const chunk of createReadStream(options.part, { end: size - 1, signal: options.signal })) {
      if (chunk instanceof Uint8Array) hash.update(chunk);
    }
    return new Transfer(file, options, state, hash, size);
  }

  async run(): Promise<void> {
    let fruitless = 0;
    for (let tries = 1; ; tries++) {
      const before = this.#received;
      try {
        if (await this.#once()) return;
        throw new TransientFault(`${this.#options.url} ended after ${this.#received} of ${this.#state.total} bytes`);
      } catch (error) {
        if (!(error instanceof TransientFault)) throw error;
        fruitless = this.#received > before ? 0 : fruitless + 1;
        if (fruitless >= FRUITLESS_TRIES || tries >= ALL_TRIES) {
          throw modelFault("model_source_failed", `${error.message}; gave up after ${tries} tries, the part is kept`, {
            cause: error,
            retryable: true,
          });
        }
        const wait = Math.min(LONGEST_WAIT_MS, error.retryAfterMs ?? FIRST_WAIT_MS * 2 ** fruitless);
        await this.#options.pause(wait, this.#options.signal);
      }
    }
  }

  /** One request; true when the file is complete. */
  async #once(): Promise<boolean> {
    const { url, token, signal } = this.#options;
    const { validator } = this.#state;
    const response = await requestSource({ url, token, signal, offset: this.#received, validator });
    this.#sha256 ??= response.statedSha256;
    if (response.status === 416) {
      // The part is already whole (a crash before the rename), or longer than the file is now.
      if (response.total === this.#received) return true;
      await this.#restart();
      throw new TransientFault(`${url} has no byte ${this.#received}`);
    }
    try {
      await this.#accept(response);
      await this.#write(response);
    } finally {
      response.body.destroy();
    }
    return this.#state.total === undefined || this.#received === this.#state.total;
  }

  /** Takes the answer as the continuation of the part, or begins again where it is none. */
  async #accept(response: SourceResponse): Promise<void> {
    const { part, url, maxBytes } = this.#options;
    const known = this.#state.validator;
    // A server that ignores If-Range continues another version; its validator gives it away.
    const otherVersion = known !== undefined && response.validator !== undefined && known !== response.validator;
    if (response.status === 206 && (response.start !== this.#received || otherVersion)) {
      await this.#restart();
      throw new TransientFault(`${url} sent another part than asked for`);
    }
    if (response.status === 200 && this.#received > 0) await this.#restart();
    if (response.total !== undefined && response.total > maxBytes) throw tooLarge(url, response.total, maxBytes);
    this.#state = { url, validator: response.validator, total: response.total };
    await writeFile(statePath(part), JSON.stringify(this.#state)).catch((error: unknown) => {
      throw writeFault(error, part);
    });
    await this.#checkSpace();
  }

  async #checkSpace(): Promise<void> {
    const { total } = this.#state;
    if (total === undefined) return;
    const disk = await statfs(dirname(this.#options.part));
    const free = disk.bavail * disk.bsize;
    if (free < total - this.#received) {
      throw modelFault(
        "disk_full",
        `${total - this.#received} bytes are still to come, ${free} are free for ${this.#options.part}`,
      );
    }
  }

  async #write(response: SourceResponse): Promise<void> {
    const { url, part, maxBytes, signal, onProgress } = this.#options;
    const body: AsyncIterable<unknown> = response.body;
    try {
      for await (const chunk of body) {
        if (!(chunk instanceof Uint8Array)) continue;
        if (this.#received + chunk.length > maxBytes) throw tooLarge(url, this.#received + chunk.length, maxBytes);
        await appendFully(this.#file, chunk, part);
        this.#hash.update(chunk);
        this.#received += chunk.length;
        onProgress({ phase: "download", received: this.#received, total: this.#state.total });
      }
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      if (error instanceof Error && "code" in error && String(error.code).startsWith("UND_ERR"))
        throw new TransientFault(`${url} broke off`, { cause: error });
      if (error instanceof Error && "code" in error && error.code === "ECONNRESET")
        throw new TransientFault(`${url} broke off`, { cause: error });
      throw error;
    }
  }

  async #restart(): Promise<void> {
    await this.#file.truncate(0);
    this.#hash = createHash("sha256");
    this.#received = 0;
    this.#state = { url: this.#options.url };
  }

  async finish(): Promise<Downloaded> {
    const { url, part } = this.#options;
    const sha256 = this.#hash.digest("hex");
    if (this.#sha256 !== undefined && sha256 !== this.#sha256) {
      await this.#restart();
      await rm(statePath(part), { force: true });
      throw modelFault("model_checksum_mismatch", `${url} has sha256 ${sha256}, expected ${this.#sha256}`);
    }
    await this.#file.sync();
    await rm(statePath(part), { force: true });
    return { bytes: this.#received, sha256 };
  }
}

/** Positions are ignored in append mode, so what is written always continues the part. */
async function appendFully(file: FileHandle, chunk: Uint8Array, part: string): Promise<void> {
  try {
    for (let written = 0; written < chunk.length; ) written += (await file.write(chunk, written)).bytesWritten;
  } catch (error) {
    throw writeFault(error, part);
  }
}

async function readState(options: DownloadOptions): Promise<PartState | undefined> {
  const text = await readFile(statePath(options.part), "utf8").catch(() => undefined);
  if (text === undefined) return undefined;
  try {
    const state = partStateSchema.parse(JSON.parse(text));
    return state.url === options.url ? state : undefined;
  } catch {
    return undefined;
  }
}

function statePath(part: string): string {
  return `${part}.json`;
}

function tooLarge(url: string, bytes: number, maxBytes: number): Error {
  return modelFault("model_too_large", `${url} has ${bytes} bytes or more, over the limit of ${maxBytes}`);
}
