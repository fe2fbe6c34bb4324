/**
 * Keys of full KV blocks: chained, salted, computed from token ids, 53 bits so that one fits a JavaScript number.
 * They serve affinity only: a collision sends a request to a slower backend, it never changes an answer.
 * Both sides of the KV index use these functions: prompts here, and the tokens in a backend's KV events.
 */

const low32 = 0x1_0000_0000;
const high21 = 0x1f_ffff;

/** MurmurHash3's 32-bit finaliser (Appleby, public domain): every input bit reaches every output bit. */
function mix(value: number): number {
  let h = value;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return h ^ (h >>> 16);
}

function seal(a: number, b: number, count: number): number {
  const first = mix(a ^ count);
  const second = mix(b ^ first);
  return (second & high21) * low32 + (mix(first ^ second) >>> 0);
}

/** The parent of a first block: stands for the salt, so that chains of different salts never meet. */
export function rootKey(salt: string): number {
  let a = 0x9e3779b9;
  let b = 0x7f4a7c15;
  for (let index = 0; index < salt.length; index++) {
    const unit = salt.charCodeAt(index);
    a = Math.imul(a ^ unit, 0x85ebca6b) + b;
    b = Math.imul((b << 13) | (b >>> 19), 5) ^ unit;
  }
  return seal(a, b, salt.length);
}

/** The key of the block that holds `ids[start, end)` and follows the block (or root) `parent`. */
export function chainKey(parent: number, ids: ArrayLike<number>, start: number, end: number): number {
  let a = (parent % low32) | 0;
  let b = Math.floor(parent / low32) | 0;
  for (let index = start; index < end; index++) {
    const id = ids[index] ?? 0;
    // Two lanes with different multipliers and rotations; each feeds the other, so order matters in both.
    a = Math.imul(((a << 15) | (a >>> 17)) ^ id, 0xcc9e2d51) + b;
    b = Math.imul(((b << 13) | (b >>> 19)) ^ id, 0x1b873593) ^ a;
  }
  return seal(a, b, end - start);
}

/** Keys of all full blocks of `ids`, in order; a partial last block has none. Throws nothing; O(ids). */
export function blockKeys(ids: ArrayLike<number>, blockSize: number, salt: string): number[] {
  const keys: number[] = [];
  let parent = rootKey(salt);
  for (let start = 0; start + blockSize <= ids.length; start += blockSize) {
    parent = chainKey(parent, ids, start, start + blockSize);
    keys.push(parent);
  }
  return keys;
}
