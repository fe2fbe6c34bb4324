import { tokenizerFault } from "./fault.ts";

/**
 * Reads the metadata of a GGUF file (versions 2 and 3, little endian), and only the keys that are asked for:
 * tensors are never touched, so a 100 GB model costs a few megabytes of reads.
 * Format: ggml-org/ggml `docs/gguf.md`.
 */

/** Reads up to `length` bytes at `offset`; fewer only where the file ends. */
export type ReadAt = (offset: number, length: number) => Promise<Uint8Array>;

export type GgufValue = number | boolean | string | readonly string[] | Float64Array;

export interface GgufMetadata {
  readonly version: number;
  readonly tensorCount: number;
  readonly values: ReadonlyMap<string, GgufValue>;
}

const FIRST_READ = 4 << 20;
/** Larger than any published vocabulary (about 30 MB with 256 k tokens and merges); a wrong count cannot exhaust memory. */
const MAX_METADATA = 256 << 20;
const MAX_KEYS = 65_536;
const MAX_KEY_LENGTH = 65_535;
const MAX_NESTING = 4;

/** Value type codes of the format; 8 = string and 9 = array have no fixed size. */
const FIXED_SIZE: readonly (number | undefined)[] = [1, 1, 2, 2, 4, 4, 4, 1, undefined, undefined, 8, 8, 8];
const STRING = 8;
const ARRAY = 9;

/** Thrown inside this file when the window ends early; the caller of the cursor reads more and starts again. */
class WindowEnded extends Error {}

class Cursor {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  offset = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  #take(length: number): number {
    const start = this.offset;
    if (length > MAX_METADATA) throw tokenizerFault(`GGUF: a length of ${length} at offset ${start} is not plausible`);
    if (start + length > this.#bytes.length) throw new WindowEnded();
    this.offset = start + length;
    return start;
  }

  u32(): number {
    return this.#view.getUint32(this.#take(4), true);
  }

  /** A count or length: refused beyond 2^53, where a number would no longer be exact. */
  u64(): number {
    const value = this.#view.getBigUint64(this.#take(8), true);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw tokenizerFault(`GGUF: a count of ${value} at offset ${this.offset - 8} is not plausible`);
    }
    return Number(value);
  }

  string(): string {
    const length = this.u64();
    const start = this.#take(length);
    return this.#decoder.decode(this.#bytes.subarray(start, start + length));
  }

  skipString(): void {
    this.#take(this.u64());
  }

  skip(length: number): void {
    this.#take(length);
  }

  scalar(type: number): number | boolean {
    const view = this.#view;
    switch (type) {
      case 0:
        return view.getUint8(this.#take(1));
      case 1:
        return view.getInt8(this.#take(1));
      case 2:
        return view.getUint16(this.#take(2), true);
      case 3:
        return view.getInt16(this.#take(2), true);
      case 4:
        return view.getUint32(this.#take(4), true);
      case 5:
        return view.getInt32(this.#take(4), true);
      case 6:
        return view.getFloat32(this.#take(4), true);
      case 7:
        return view.getUint8(this.#take(1)) !== 0;
      case 10:
        return Number(view.getBigUint64(this.#take(8), true));
      case 11:
        return Number(view.getBigInt64(this.#take(8), true));
      case 12:
        return view.getFloat64(this.#take(8), true);
      default:
        throw tokenizerFault(`GGUF: unknown value type ${type} at offset ${this.offset}`);
    }
  }
}

function readArray(cursor: Cursor, key: string): GgufValue {
  const type = cursor.u32();
  const count = cursor.u64();
  // Each element takes at least a byte, so a count beyond the bound is a broken or hostile file.
  if (count > MAX_METADATA) throw tokenizerFault(`GGUF: ${key} claims ${count} elements`);
  if (type === STRING) {
    const strings: string[] = [];
    for (let index = 0; index < count; index++) strings.push(cursor.string());
    return strings;
  }
  const size = FIXED_SIZE[type];
  if (size === undefined)
    throw tokenizerFault(`GGUF: ${key} is an array of value type ${type}, which is not read here`);
  const start = cursor.offset;
  cursor.skip(count * size);
  cursor.offset = start;
  const numbers = new Float64Array(count);
  for (let index = 0; index < count; index++) numbers[index] = Number(cursor.scalar(type));
  return numbers;
}

function skipValue(cursor: Cursor, type: number, depth = 0): void {
  if (type === STRING) {
    cursor.skipString();
    return;
  }
  if (type === ARRAY) {
    if (depth >= MAX_NESTING) throw tokenizerFault(`GGUF: arrays nested deeper than ${MAX_NESTING}`);
    const element = cursor.u32();
    const count = cursor.u64();
    if (count > MAX_METADATA)
      throw tokenizerFault(`GGUF: an array claims ${count} elements at offset ${cursor.offset}`);
    const size = FIXED_SIZE[element];
    if (size !== undefined) cursor.skip(count * size);
    else for (let index = 0; index < count; index++) skipValue(cursor, element, depth + 1);
    return;
  }
  cursor.scalar(type);
}

function parse(bytes: Uint8Array, wanted: (key: string) => boolean): GgufMetadata {
  const cursor = new Cursor(bytes);
  if (cursor.u32() !== 0x46554747) throw tokenizerFault("GGUF: the file does not begin with the magic 'GGUF'");
  const version = cursor.u32();
  if (version !== 2 && version !== 3) {
    throw tokenizerFault(`GGUF: version ${version} is not supported (2 and 3 are, little endian)`);
  }
  const tensorCount = cursor.u64();
  const keys = cursor.u64();
  if (keys > MAX_KEYS) throw tokenizerFault(`GGUF: ${keys} metadata keys are not plausible`);
  const values = new Map<string, GgufValue>();
  for (let index = 0; index < keys; index++) {
    const key = cursor.string();
    if (key.length === 0 || key.length > MAX_KEY_LENGTH) {
      throw tokenizerFault(`GGUF: metadata key ${index} has ${key.length} characters`);
    }
    const type = cursor.u32();
    if (!wanted(key)) skipValue(cursor, type);
    else if (type === STRING) values.set(key, cursor.string());
    else if (type === ARRAY) values.set(key, readArray(cursor, key));
    else values.set(key, cursor.scalar(type));
  }
  return { version, tensorCount, values };
}

/**
 * Reads the metadata values whose key `wanted` takes. Throws SluiceError `bad_tokenizer_file` for a file that is no
 * GGUF, is cut short, or claims sizes that cannot be.
 */
export async function readGgufMetadata(
  readAt: ReadAt,
  wanted: (key: string) => boolean = () => true,
): Promise<GgufMetadata> {
  let window = await readAt(0, FIRST_READ);
  let size = FIRST_READ;
  for (;;) {
    try {
      return parse(window, wanted);
    } catch (error) {
      if (!(error instanceof WindowEnded)) throw error;
    }
    if (window.length < size)
      throw tokenizerFault(`GGUF: the file ends after ${window.length} bytes, inside its metadata`);
    if (size >= MAX_METADATA) throw tokenizerFault(`GGUF: metadata larger than ${MAX_METADATA} bytes`);
    const rest = await readAt(window.length, size);
    const grown = new Uint8Array(window.length + rest.length);
    grown.set(window);
    grown.set(rest, window.length);
    window = grown;
    size *= 2;
  }
}
