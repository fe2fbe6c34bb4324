import { SluiceError } from "../errors.ts";
import type { Exchange, Platform } from "./platform/platform.ts";
import type { TenantDirectory, TenantEntry } from "./tenants/directory.ts";

const unauthorized = (message: string): SluiceError =>
  new SluiceError({ status: 401, type: "authentication_error", code: "invalid_api_key", message });

/**
 * The caller's key -> its tenant. Keys are looked up by their hash: how long the look-up takes tells nothing about a
 * key, because nobody can choose the hash of a guess. Throws 401.
 */
export async function authenticate(
  exchange: Exchange,
  platform: Platform,
  directory: TenantDirectory,
): Promise<TenantEntry> {
  const header = exchange.header("authorization");
  if (header === undefined) {
    throw unauthorized("No API key was sent. Send one in the header `Authorization: Bearer KEY`.");
  }
  const [scheme, key, more] = header.split(" ");
  if (scheme?.toLowerCase() !== "bearer" || key === undefined || key === "" || more !== undefined) {
    throw unauthorized("The header `Authorization` is not of the form `Bearer KEY`.");
  }
  const entry = directory.find(await platform.sha256(key));
  if (entry === undefined) throw unauthorized("The API key is not known here.");
  return entry;
}
