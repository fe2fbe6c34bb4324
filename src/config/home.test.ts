import { describe, expect, it } from "vitest";
import { homeFolders } from "./home.ts";

describe("where state lives", () => {
  it("is all in SLUICE_HOME when that is set", () => {
    expect(homeFolders({ SLUICE_HOME: "/srv/sluice", HOME: "/home/ada", XDG_CACHE_HOME: "/c" })).toEqual({
      models: "/srv/sluice/models",
      cache: "/srv/sluice/cache",
      state: "/srv/sluice",
    });
  });

  it("is in the XDG folders otherwise, where a relative one counts as unset", () => {
    expect(homeFolders({ HOME: "/home/ada", XDG_CACHE_HOME: "/c", XDG_STATE_HOME: "relative" })).toEqual({
      models: "/home/ada/.local/share/sluice/models",
      cache: "/c/sluice",
      state: "/home/ada/.local/state/sluice",
    });
  });
});
