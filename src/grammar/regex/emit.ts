// Writes a Regex in the small dialect that every XGrammar version reads alike: classes with explicit code points, groups,
// and quantifiers; no shorthand, no flag, no anchor.
import { contains, isEveryCharacter, normalizeRanges, type Range, type Regex } from "./ast.ts";

function codePoint(code: number): string {
  return `\\u{${code.toString(16)}}`;
}

// One character of a JSON string's text, as RFC 8259 has it: raw, a short escape, or \u. A \u escape may not be half of a
// surrogate pair: JSON.parse would take it and the answer could not be written as UTF-8.
const HEX = "[0-9a-fA-F]";
const UNICODE_ESCAPE =
  `u(?:[0-9a-cefA-CEF]${HEX}{3}|[dD][0-7]${HEX}{2}|` + `[dD][89abAB]${HEX}{2}\\u{5c}u[dD][c-fC-F]${HEX}{2})`;
// Spelt out, not negated: the core's complement holds surrogates, which are no UTF-8.
export const RAW_RANGES: readonly Range[] = [
  [0x20, 0x21],
  [0x23, 0x5b],
  [0x5d, 0xd7ff],
  [0xe000, 0x10ffff],
];
const RAW_CHARACTER = classOf(RAW_RANGES);
export const JSON_CHARACTER = `(?:${RAW_CHARACTER}|\\u{5c}(?:[\\u{22}\\u{5c}\\u{2f}bfnrt]|${UNICODE_ESCAPE}))`;
/** A character of a key in an open object: no escapes, so that each key has one spelling only. */
export const PLAIN_KEY_CHARACTER = RAW_CHARACTER;

const MAX_COUNT = 100;

const SHORT_ESCAPES: ReadonlyMap<number, string> = new Map([
  [0x08, "b"],
  [0x09, "t"],
  [0x0a, "n"],
  [0x0c, "f"],
  [0x0d, "r"],
  [0x22, "\\u{22}"],
  [0x5c, "\\u{5c}"],
]);

export function classOf(ranges: readonly Range[]): string {
  const body = ranges.map(([low, high]) => (low === high ? codePoint(low) : `${codePoint(low)}-${codePoint(high)}`));
  return `[${body.join("")}]`;
}

/** A set as it stands in the text of a JSON string: what must be escaped is, in its shortest form. */
function setInJson(ranges: readonly Range[]): string {
  const options: string[] = [];
  const raw: Range[] = [];
  for (const [low, high] of ranges) {
    let from = Math.max(low, 0x20);
    for (const escaped of [0x22, 0x5c]) {
      if (from <= escaped && escaped <= high) {
        if (from < escaped) raw.push([from, escaped - 1]);
        from = escaped + 1;
      }
    }
    if (from <= high) raw.push([from, high]);
  }
  if (raw.length > 0) options.push(classOf(normalizeRanges(raw)));
  for (let code = 0; code <= 0x5c; code++) {
    if ((code >= 0x20 && code !== 0x22 && code !== 0x5c) || !contains(ranges, code)) continue;
    const short = SHORT_ESCAPES.get(code);
    options.push(`\\u{5c}${short ?? `u00${code.toString(16).padStart(2, "0")}`}`);
  }
  return options.length === 1 ? `${options[0]}` : `(?:${options.join("|")})`;
}

function emit(regex: Regex, set: (ranges: readonly Range[]) => string): string {
  switch (regex.kind) {
    case "set":
      return set(regex.ranges);
    case "sequence":
      return regex.parts.map((part) => (part.kind === "choice" ? `(?:${emit(part, set)})` : emit(part, set))).join("");
    case "choice":
      return regex.options.map((option) => emit(option, set)).join("|");
    case "repeat": {
      const body = `(?:${emit(regex.of, set)})`;
      const { min, max } = regex;
      if (max === Infinity) return min === 0 ? `${body}*` : `${counted(body, min - 1, min - 1)}${body}+`;
      return min === 0 && max === 1 ? `${body}?` : counted(body, min, max);
    }
  }
}

/** In pieces: the core turns a count above 128 into a rule of its own, which its compiler then cannot find (0.2.8). */
function counted(body: string, min: number, max: number): string {
  let text = "";
  for (let [least, most] = [min, max]; most > 0; ) {
    const high = Math.min(most, MAX_COUNT);
    const low = Math.min(least, high);
    text += `${body}{${low},${high}}`;
    least -= low;
    most -= high;
  }
  return text;
}

/** The regex over plain text, as one atom. */
export function emitText(regex: Regex): string {
  return atom(emit(regex, classOf));
}

const atom = (text: string): string => `(?:${text})`;

/** The regex over the inside of a JSON string (without its quotes), as one atom. */
export function emitJsonString(regex: Regex): string {
  return atom(
    emit(regex, (ranges) => (isEveryCharacter({ kind: "set", ranges }) ? JSON_CHARACTER : setInJson(ranges))),
  );
}
