import { homedir } from "node:os";
import { join } from "node:path";

/** Where state lives. All inside `SLUICE_HOME` when it is set, else in the XDG base directories. */
export interface HomeFolders {
  /** Models as they came: can be brought again. */
  readonly models: string;
  /** Whatever can be computed again: grammar artifacts, repacked weights. */
  readonly cache: string;
  /** Keys, usage, files of running processes. */
  readonly state: string;
}

/** https://specifications.freedesktop.org/basedir-spec: an empty or relative value counts as unset. */
export function homeFolders(env: Readonly<Record<string, string | undefined>> = process.env): HomeFolders {
  const own = env.SLUICE_HOME;
  if (own !== undefined && own !== "") {
    return { models: join(own, "models"), cache: join(own, "cache"), state: own };
  }
  const home = env.HOME ?? homedir();
  const folder = (name: string, fallback: string) => {
    const given = env[name];
    return join(given?.startsWith("/") ? given : join(home, fallback), "sluice");
  };
  return {
    models: join(folder("XDG_DATA_HOME", ".local/share"), "models"),
    cache: folder("XDG_CACHE_HOME", ".cache"),
    state: folder("XDG_STATE_HOME", ".local/state"),
  };
}
