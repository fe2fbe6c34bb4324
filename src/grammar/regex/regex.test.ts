import { expect, test } from "vitest";
import { regexMacro } from "../lower/ebnf.ts";
import { byteVocabulary, GrammarBench } from "../xgrammar-testing.ts";
import { lengths, withLength } from "./ast.ts";
import { emitJsonString, emitText } from "./emit.ts";
import { parseFullPattern, parseSearchPattern } from "./parse.ts";

const bench = new GrammarBench(byteVocabulary());
const LETTERS = ["a", "b", "c"];

function words(longest: number): string[] {
  const all = [""];
  for (const word of all) if (word.length < longest) all.push(...LETTERS.map((letter) => word + letter));
  return all;
}

/** A small linear congruential generator: the same patterns on every run. */
function randomness(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fffffff;
    return (state >> 8) % below;
  };
}

function randomPattern(random: (below: number) => number, depth: number): string {
  const kind = depth === 0 ? 0 : random(9);
  if (kind < 2) return ["a", "b", "c", "[ab]", "[^b]", "."][random(6)] ?? "a";
  const inner = () => randomPattern(random, depth - 1);
  if (kind < 5) return inner() + inner();
  if (kind < 7) return `(?:${inner()}|${inner()})`;
  return `(?:${inner()})${["?", "*", "+", "{1,2}", "{0,3}", "{2,}"][random(6)] ?? "?"}`;
}

test("100 random patterns match what JavaScript matches, searched and from end to end", async () => {
  const random = randomness(7);
  const texts = words(3);
  const wrong: string[] = [];
  for (let i = 0; i < 100; i++) {
    const pattern = randomPattern(random, 4);
    const full = await bench.compileText("ebnf", `root ::= ${regexMacro(emitText(parseFullPattern(pattern)))}\n`);
    const search = await bench.compileText(
      "ebnf",
      `root ::= ${regexMacro(`"${emitJsonString(parseSearchPattern(pattern).regex)}"`)}\n`,
    );
    const whole = new RegExp(`^(?:${pattern})$`, "u");
    const found = new RegExp(pattern, "u");
    const differs = texts.find(
      (text) =>
        bench.matches(full, text) !== whole.test(text) || bench.matches(search, `"${text}"`) !== found.test(text),
    );
    if (differs !== undefined) wrong.push(`${pattern} on "${differs}"`);
  }
  expect(wrong).toEqual([]);
});

// XGrammar 0.2.8 as released allows the last text of each of these two.
test.each<[string, string[], string]>([
  ["(?:b+ac)?b", ["b", "bacb"], "bb"],
  ["[bc]|(?:[bc](?:[bc](?:[bc]|)|)|)", ["b", "bcb"], "bbbb"],
])("the core's automaton of %s is right", async (pattern, good, bad) => {
  const artifact = await bench.compileText("ebnf", `root ::= ${regexMacro(pattern)}\n`);
  expect(good.every((text) => bench.matches(artifact, text))).toBe(true);
  expect(bench.matches(artifact, bad)).toBe(false);
});

test("lengths are known and can be cut where one part varies", () => {
  expect(lengths(parseFullPattern("a(b|cd){2,3}"))).toEqual([3, 7]);
  const cut = withLength(parseFullPattern("x[a-z]*y"), 3, 5);
  expect(cut === undefined ? undefined : lengths(cut)).toEqual([3, 5]);
  expect(withLength(parseFullPattern("a*b*"), 3, 5)).toBeUndefined();
});
