import { describe, expect, test } from "vitest";
import { StopMatcher } from "./stop-strings.ts";

/** The rule by brute force: read unit by unit; the first unit that completes a stop string ends the answer before it. */
function naive(text: string, stops: readonly string[]): { text: string; hit: boolean } {
  for (let end = 1; end <= text.length; end++) {
    const complete = stops.filter((stop) => text.slice(0, end).endsWith(stop));
    if (complete.length === 0) continue;
    const longest = complete.reduce((a, b) => (b.length > a.length ? b : a));
    return { text: text.slice(0, end - longest.length), hit: true };
  }
  return { text, hit: false };
}

/** Deterministic, so that a failure repeats. */
function randomizer(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

test("any text, any stop strings, cut into any pieces: the same answer as reading unit by unit", () => {
  const random = randomizer(7);
  const word = (length: number): string => Array.from({ length }, () => "abc"[random(3)]).join("");
  for (let round = 0; round < 20_000; round++) {
    const text = word(random(24));
    const stops = Array.from({ length: 1 + random(4) }, () => word(1 + random(5)));
    const matcher = new StopMatcher(stops);
    let released = "";
    let hit = false;
    for (let at = 0; at < text.length && !hit; ) {
      const length = 1 + random(5);
      const found = matcher.push(text.slice(at, at + length));
      released += found.text;
      hit = found.hit;
      at += length;
      // What has been released can never be part of a stop string that comes later.
      expect(naive(text, stops).text.startsWith(released), `${text} | ${stops} | ${released}`).toBe(true);
    }
    if (!hit) released += matcher.flush();
    expect({ text: released, hit }, `${text} | ${stops}`).toEqual(naive(text, stops));
  }
});

describe("a stop string over pieces", () => {
  test("is found and nothing of it is shown", () => {
    const matcher = new StopMatcher(["END"]);
    expect(matcher.push("one E")).toEqual({ text: "one ", hit: false });
    expect(matcher.push("N")).toEqual({ text: "", hit: false });
    expect(matcher.push("D two")).toEqual({ text: "", hit: true });
  });

  test("that was none after all is shown whole", () => {
    const matcher = new StopMatcher(["END"]);
    expect(matcher.push("E").text + matcher.push("NO").text + matcher.flush()).toBe("ENO");
  });

  test("that begins again inside itself is found", () => {
    const matcher = new StopMatcher(["aab"]);
    expect(matcher.push("a").text).toBe("");
    expect(matcher.push("a").text).toBe("");
    expect(matcher.push("a").text).toBe("a");
    expect(matcher.push("b")).toEqual({ text: "", hit: true });
  });
});
