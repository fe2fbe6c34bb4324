import { describe, expect, it } from "vitest";
import { nextRestart } from "./backoff.ts";

const policy = { firstMs: 100, maxMs: 1_000, maxDeaths: 5, windowMs: 10_000 };

describe("restarting a process that died", () => {
  it.each([
    ["the first death waits least", [0], { waitMs: 100 }],
    ["a second one soon after waits twice as long", [0, 200], { waitMs: 200 }],
    ["the wait has an upper bound", [0, 100, 200, 300, 400], { waitMs: 1_000 }],
    ["too many in a row end it", [0, 100, 200, 300, 400, 500], "give_up"],
    ["deaths long ago do not count", [0, 100, 200, 300, 400, 60_000], { waitMs: 100 }],
  ] as const)("%s", (_, deaths, expected) => {
    expect(nextRestart(deaths, policy)).toEqual(expected);
  });
});
