import { createHmac, timingSafeEqual } from "node:crypto";

/**
 * HMAC-SHA256(pool key, hash bytes || artifact bytes), hex. A daemon deserialises an artifact only after this holds, so that
 * whoever lacks the pool key reaches no native parser. The hash has a fixed length, so the two parts cannot be shifted.
 */
export function artifactMac(poolKey: string, hash: string, bytes: Uint8Array): string {
  return digest(poolKey, hash, bytes).toString("hex");
}

export function verifyArtifactMac(poolKey: string, hash: string, bytes: Uint8Array, mac: string): boolean {
  const expected = digest(poolKey, hash, bytes);
  const given = Buffer.from(mac, "hex");
  return given.length === expected.length && timingSafeEqual(given, expected);
}

function digest(poolKey: string, hash: string, bytes: Uint8Array): Buffer {
  return createHmac("sha256", poolKey).update(Buffer.from(hash, "hex")).update(bytes).digest();
}
