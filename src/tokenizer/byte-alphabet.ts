/**
 * GPT-2's printable alphabet for bytes: vocabularies of byte-level BPE are JSON or GGUF strings, which cannot hold raw
 * bytes, so each byte is written as one character. Printable Latin-1 bytes stand for themselves, the other 68 are moved
 * to U+0100 and up, in order (openai/gpt-2 `bytes_to_unicode`).
 */
function isPrintable(byte: number): boolean {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
}

const characterOfByte = new Uint16Array(256);
/** Indexed by code unit; -1 = no byte is written so. The alphabet ends at U+0143. */
const byteOfCharacter = new Int16Array(0x144).fill(-1);

let moved = 0;
for (let byte = 0; byte < 256; byte++) {
  const character = isPrintable(byte) ? byte : 0x100 + moved++;
  characterOfByte[byte] = character;
  byteOfCharacter[character] = byte;
}

/** The character that stands for `byte` (0..255) in a vocabulary. */
export function byteToCharacter(byte: number): string {
  return String.fromCharCode(characterOfByte[byte] ?? 0);
}

/** The bytes a vocabulary entry stands for, or undefined when it holds a character outside the alphabet. */
export function tokenTextToBytes(text: string): Uint8Array | undefined {
  const bytes = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index++) {
    const byte = byteOfCharacter[text.charCodeAt(index)] ?? -1;
    if (byte < 0) return undefined;
    bytes[index] = byte;
  }
  return bytes;
}
