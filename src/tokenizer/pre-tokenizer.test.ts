import { describe, expect, it } from "vitest";
import { translatePattern } from "./oniguruma.ts";
import { compileSplitter, namedPreTokenizer, type PreTokenizer } from "./pre-tokenizer.ts";

const split = (stages: PreTokenizer, text: string): string[] => [...compileSplitter(stages)(text)];

describe("patterns written for Oniguruma", () => {
  it.each([
    ["\\s+", "a\u0085\ufeff b", ["\u0085", " "]],
    ["\\S+", "a\u0085\ufeff b", ["a", "\ufeff", "b"]],
    ["\\d+", "1٣ ½", ["1٣"]],
    ["\\w+", "aé_9٣-한", ["aé_9٣", "한"]],
    [".+", "a\u2028b\nc", ["a\u2028b", "c"]],
    ["a+$", "aa\nba", ["aa", "a"]],
    ["^a", "a\na", ["a", "a"]],
    ["\\p{Han}+", "漢字kana", ["漢字"]],
    ["[\\p{Han}\\-x]+", "漢-x字", ["漢-x字"]],
    ["(?i:'S)", "'s 'S", ["'s", "'S"]],
    ["[\\]\\[a]+", "a][b", ["a]["]],
    ["\\x41|\\x{1F600}|\\u00e9", "A😀é", ["A", "😀", "é"]],
    ["(a|b)+c", "abac", ["abac"]],
    // Possessive and atomic parts do not give back: the rest finds nothing left.
    ["a++a", "aaa", null],
    ["a*+b|a", "aaab aa", ["aaab", "a", "a"]],
    ["(?>a+)a|b", "aaab", ["b"]],
    ["x?+x", "xx", ["xx"]],
    ["a{1,2}", "aaa", ["aa", "a"]],
    ["a{,2}b", "aaab", ["aab"]],
    ["a+?", "aa", ["a", "a"]],
  ])("%s on %j", (pattern, text, matches) => {
    expect(text.match(translatePattern(pattern))).toEqual(matches);
  });

  it.each([
    "[a&&b]",
    "[a[bc]]",
    "\\Ga",
    "\\h",
    "(?#x)a",
    "(?<n>a)",
    "\\p{Nonsense}",
    "a)",
    "(a",
    "[a",
    "a\\",
    "*a",
    "a{3}?",
  ])("%s is refused, since nothing here would mean the same", (pattern) => {
    expect(() => translatePattern(pattern)).toThrow(/pre-tokenizer pattern/);
  });
});

describe("pre-tokenizers", () => {
  it("that are fused into one pass cut where their stages would", () => {
    const { stages } = namedPreTokenizer("smollm");
    // A stage that never matches keeps the pipeline from being fused.
    const slow: PreTokenizer = [
      { kind: "splitLiteral", literal: "\u{10fffd}", behavior: "isolated", invert: false },
      ...stages,
    ];
    const parts = [
      "a",
      "é",
      " ",
      "  ",
      "\n",
      "\t",
      "1",
      "½",
      "'s",
      "'",
      "'ll",
      "!",
      "?!",
      "한",
      "\u00a0",
      "\u0301",
      "😀",
      "\u0085",
    ];
    let state = 1;
    for (let round = 0; round < 3000; round++) {
      let text = "";
      for (let index = 0; index < 12; index++) {
        state = (Math.imul(state, 1103515245) + 12345) >>> 0;
        text += parts[(state >>> 16) % parts.length] ?? "";
      }
      expect(split(stages, text)).toEqual(split(slow, text));
    }
  });

  it("keep what lies between matches", () => {
    const dots: PreTokenizer = [
      { kind: "split", pattern: "(?<=b)a", behavior: "isolated", invert: false },
      { kind: "byteLevel", addPrefixSpace: false, useRegex: false },
    ];
    expect(split(dots, "aba")).toEqual(["ab", "a"]);
  });

  it("without a ByteLevel stage at the end are refused", () => {
    expect(() => compileSplitter([{ kind: "digits", individual: true }])).toThrow("byte-level");
    expect(() => compileSplitter([])).toThrow("byte-level");
  });
});
