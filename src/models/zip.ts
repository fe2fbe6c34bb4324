import type { FileHandle } from "node:fs/promises";
import { open } from "node:fs/promises";
import { Readable } from "node:stream";
import { createInflateRaw } from "node:zlib";
import { modelFault } from "./fault.ts";

/**
 * Reads one member of a zip archive as a stream, without unpacking the rest. Only what wheels use: stored or deflated
 * members, no encryption, no zip64 (PKWARE APPNOTE 6.3.9, sections 4.3.7, 4.3.12 and 4.3.16).
 */

const END_OF_DIRECTORY = 0x06054b50;
const DIRECTORY_ENTRY = 0x02014b50;
const LOCAL_HEADER = 0x04034b50;
const END_SIZE = 22;
const LOCAL_SIZE = 30;
/** The end record may be followed by a comment of up to 65,535 bytes. */
const LONGEST_TAIL = END_SIZE + 0xffff;
const MAX_DIRECTORY = 64 << 20;
const ZIP64 = 0xffffffff;
const STORED = 0;
const DEFLATED = 8;

interface Member {
  readonly method: number;
  readonly packedBytes: number;
  readonly bytes: number;
  readonly headerOffset: number;
}

export interface ZipMember {
  /** Size unpacked, as the archive states it. */
  readonly bytes: number;
  readonly content: Readable;
}

/** Throws SluiceError `model_source_failed` for an archive that is broken or uses what is not read here. */
export async function withZipMember<Result>(
  archive: string,
  member: string,
  use: (member: ZipMember) => Promise<Result>,
): Promise<Result> {
  const file = await open(archive, "r");
  try {
    const found = (await readDirectory(file, archive)).get(member);
    if (found === undefined) throw broken(archive, `holds no ${member}`);
    const header = await readExactly(file, found.headerOffset, LOCAL_SIZE, archive);
    if (header.readUInt32LE(0) !== LOCAL_HEADER) throw broken(archive, `has no header for ${member}`);
    const start = found.headerOffset + LOCAL_SIZE + header.readUInt16LE(26) + header.readUInt16LE(28);
    // An empty range cannot be said with an inclusive end.
    if (found.packedBytes === 0) return await use({ bytes: 0, content: Readable.from([]) });
    const packed = file.createReadStream({
      start,
      end: start + found.packedBytes - 1,
      autoClose: false,
      highWaterMark: 1 << 20,
    });
    if (found.method === STORED) return await use({ bytes: found.bytes, content: packed });
    const inflate = createInflateRaw({ chunkSize: 1 << 20 });
    packed.once("error", (error) => inflate.destroy(error));
    try {
      return await use({ bytes: found.bytes, content: packed.pipe(inflate) });
    } finally {
      packed.destroy();
      inflate.destroy();
    }
  } finally {
    await file.close();
  }
}

async function readDirectory(file: FileHandle, archive: string): Promise<ReadonlyMap<string, Member>> {
  const { size } = await file.stat();
  const tailStart = Math.max(0, size - LONGEST_TAIL);
  const tail = await readExactly(file, tailStart, size - tailStart, archive);
  let at = tail.length - END_SIZE;
  while (at >= 0 && tail.readUInt32LE(at) !== END_OF_DIRECTORY) at--;
  if (at < 0) throw broken(archive, "is no zip archive");
  const bytes = tail.readUInt32LE(at + 12);
  const offset = tail.readUInt32LE(at + 16);
  if (bytes === ZIP64 || offset === ZIP64) throw broken(archive, "is zip64, which is not read here");
  if (bytes > MAX_DIRECTORY) throw broken(archive, `has a directory of ${bytes} bytes`);
  const directory = await readExactly(file, offset, bytes, archive);
  const members = new Map<string, Member>();
  for (let entry = 0; entry + 46 <= directory.length; ) {
    if (directory.readUInt32LE(entry) !== DIRECTORY_ENTRY) throw broken(archive, "has a broken directory");
    const nameLength = directory.readUInt16LE(entry + 28);
    const method = directory.readUInt16LE(entry + 10);
    const packedBytes = directory.readUInt32LE(entry + 20);
    const name = directory.toString("utf8", entry + 46, entry + 46 + nameLength);
    const readable =
      (method === STORED || method === DEFLATED) &&
      (directory.readUInt16LE(entry + 8) & 1) === 0 &&
      packedBytes !== ZIP64;
    if (readable) {
      members.set(name, {
        method,
        packedBytes,
        bytes: directory.readUInt32LE(entry + 24),
        headerOffset: directory.readUInt32LE(entry + 42),
      });
    }
    entry += 46 + nameLength + directory.readUInt16LE(entry + 30) + directory.readUInt16LE(entry + 32);
  }
  return members;
}

async function readExactly(file: FileHandle, offset: number, length: number, archive: string): Promise<Buffer> {
  const buffer = Buffer.alloc(length);
  for (let filled = 0; filled < length; ) {
    const { bytesRead } = await file.read(buffer, filled, length - filled, offset + filled);
    if (bytesRead === 0) throw broken(archive, "is cut short");
    filled += bytesRead;
  }
  return buffer;
}

function broken(archive: string, fault: string): Error {
  return modelFault("model_source_failed", `${archive} ${fault}`);
}
