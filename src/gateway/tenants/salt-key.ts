import { type Environment, secretValue } from "../../config/parse.ts";
import type { Config } from "../../config/schema.ts";

/** The key of all cache salts: the configured secret, else one that lives as long as the process. */
export function saltKeyOf(config: Config, environment: Environment): Uint8Array<ArrayBuffer> {
  if (config.saltKey !== undefined) return new TextEncoder().encode(secretValue(config.saltKey, environment));
  return crypto.getRandomValues(new Uint8Array(32));
}
