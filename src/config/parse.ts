import { parseDocument } from "yaml";
import { SluiceError } from "../errors.ts";
import { type Config, configSchema } from "./schema.ts";

/** A fault in a configuration; `param` is its path, the message names it too. */
export function configFault(param: string | undefined, message: string, cause?: unknown): SluiceError {
  return new SluiceError({
    status: 500,
    type: "server_error",
    code: "invalid_config",
    message: param === undefined ? message : `${param}: ${message}`,
    param,
    cause,
  });
}

export type Environment = Readonly<Record<string, string | undefined>>;

/**
 * A configuration from the text of a YAML or JSON file (JSON is YAML). Throws SluiceError `invalid_config` with the path
 * of the first fault; the message lists all.
 */
export function parseConfig(text: string, environment: Environment): Config {
  const document = parseDocument(text, { prettyErrors: true, uniqueKeys: true });
  const [syntax] = document.errors;
  if (syntax !== undefined) throw configFault(undefined, `Not valid YAML: ${syntax.message.split("\n")[0]}`);
  // Without a bound a few nested aliases unfold to gigabytes.
  const result = configSchema.safeParse(document.toJS({ maxAliasCount: 100 }));
  if (!result.success) throw fromIssues(result.error.issues);
  checkSecrets(result.data, environment);
  return result.data;
}

interface Fault {
  readonly path: readonly PropertyKey[];
  readonly message: string;
  readonly code: string;
  readonly keys?: readonly string[];
}

function fromIssues(issues: readonly Fault[]): SluiceError {
  const faults = issues.flatMap(({ path, message, code, keys }) =>
    code === "unrecognized_keys" && keys !== undefined
      ? keys.map((key) => ({ path: configPath([...path, key]), message: "is not a setting" }))
      : [{ path: configPath(path), message: message.replace(/^Invalid input: /, "") }],
  );
  const [first, ...others] = faults;
  const rest = others.map((fault) => `; ${fault.path}: ${fault.message}`).join("");
  return configFault(first?.path || undefined, `${first?.message ?? "invalid"}${rest}`);
}

/** `pools.east.endpoints[0]`; a name that is no identifier is quoted: `models["a/b"].pools`. */
export function configPath(path: readonly PropertyKey[]): string {
  let text = "";
  for (const key of path) {
    if (typeof key === "number") text += `[${key}]`;
    else if (/^[\w-]+$/.test(String(key))) text += text === "" ? String(key) : `.${String(key)}`;
    else text += `[${JSON.stringify(String(key))}]`;
  }
  return text;
}

interface SecretReference {
  readonly env: string;
}

function* secretsOf(config: Config): Generator<readonly [path: PropertyKey[], secret: SecretReference]> {
  for (const [name, pool] of Object.entries(config.pools)) if (pool.key) yield [["pools", name, "key"], pool.key];
  if (config.saltKey) yield [["saltKey"], config.saltKey];
}

function checkSecrets(config: Config, environment: Environment): void {
  for (const [path, secret] of secretsOf(config)) {
    if (!environment[secret.env]) {
      throw configFault(configPath([...path, "env"]), `the environment has no ${secret.env}`);
    }
  }
}

/** The value that a secret's reference stands for. `loadConfig` has checked that it is there. */
export function secretValue(secret: SecretReference, environment: Environment): string {
  const value = environment[secret.env];
  if (!value) throw configFault(undefined, `The environment has no ${secret.env}.`);
  return value;
}
