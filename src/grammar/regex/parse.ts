// Reads an ECMA-262 pattern (the dialect of JSON Schema) into a Regex. What a regular language cannot say, or what the
// engine under us would get wrong, is refused by name: look-around, back references, word boundaries, Unicode classes.
import {
  choice,
  complementRanges,
  EMPTY,
  ANY_CHARACTER,
  normalizeRanges,
  type Range,
  type Regex,
  repeat,
  sequence,
  stateEstimate,
} from "./ast.ts";

/** What is wrong with a pattern; the caller knows the path. */
export class PatternFault extends Error {
  override readonly name = "PatternFault";
  readonly tooComplex: boolean;

  constructor(message: string, tooComplex = false) {
    super(message);
    this.tooComplex = tooComplex;
  }
}

const MAX_PATTERN_LENGTH = 4096;
const MAX_NESTING = 50;
const MAX_COUNT = 2000;
const MAX_SEARCHED_STATES = 40;

const DIGITS: readonly Range[] = [[0x30, 0x39]];
const WORD: readonly Range[] = [
  [0x30, 0x39],
  [0x41, 0x5a],
  [0x5f, 0x5f],
  [0x61, 0x7a],
];
// ECMA-262 WhiteSpace and LineTerminator.
const SPACE: readonly Range[] = [
  [0x09, 0x0d],
  [0x20, 0x20],
  [0xa0, 0xa0],
  [0x1680, 0x1680],
  [0x2000, 0x200a],
  [0x2028, 0x2029],
  [0x202f, 0x202f],
  [0x205f, 0x205f],
  [0x3000, 0x3000],
  [0xfeff, 0xfeff],
];
const NOT_LINE_END = complementRanges([
  [0x0a, 0x0a],
  [0x0d, 0x0d],
  [0x2028, 0x2029],
]);
const CONTROL_ESCAPES: Readonly<Record<string, number>> = { t: 9, n: 10, v: 11, f: 12, r: 13 };

/** A parsed pattern with its anchors still in place. */
type Piece =
  | { readonly kind: "start" }
  | { readonly kind: "end" }
  | { readonly kind: "set"; readonly ranges: readonly Range[] }
  | { readonly kind: "sequence"; readonly parts: readonly Piece[] }
  | { readonly kind: "choice"; readonly options: readonly Piece[] }
  | { readonly kind: "repeat"; readonly of: Piece; readonly min: number; readonly max: number };

class Parser {
  private readonly characters: readonly string[];
  private at = 0;
  private depth = 0;

  constructor(source: string) {
    this.characters = Array.from(source);
  }

  parse(): Piece {
    const piece = this.alternatives();
    if (this.at < this.characters.length) throw new PatternFault("has a `)` that nothing opens");
    return piece;
  }

  private peek(offset = 0): string | undefined {
    return this.characters[this.at + offset];
  }

  private take(): string {
    const character = this.characters[this.at++];
    if (character === undefined) throw new PatternFault("ends too early");
    return character;
  }

  private eat(text: string): boolean {
    for (let i = 0; i < text.length; i++) if (this.peek(i) !== text[i]) return false;
    this.at += text.length;
    return true;
  }

  private alternatives(): Piece {
    if (++this.depth > MAX_NESTING) throw new PatternFault(`nests groups deeper than ${MAX_NESTING}`, true);
    const options: Piece[] = [this.terms()];
    while (this.eat("|")) options.push(this.terms());
    this.depth--;
    const [only] = options;
    return options.length === 1 && only !== undefined ? only : { kind: "choice", options };
  }

  private terms(): Piece {
    const parts: Piece[] = [];
    for (let next = this.peek(); next !== undefined && next !== "|" && next !== ")"; next = this.peek()) {
      const atom = this.atom();
      parts.push(this.quantified(atom));
    }
    const [only] = parts;
    return parts.length === 1 && only !== undefined ? only : { kind: "sequence", parts };
  }

  private atom(): Piece {
    const character = this.take();
    switch (character) {
      case "^":
        return { kind: "start" };
      case "$":
        return { kind: "end" };
      case ".":
        return { kind: "set", ranges: NOT_LINE_END };
      case "[":
        return { kind: "set", ranges: this.characterClass() };
      case "(":
        return this.group();
      case "\\":
        return { kind: "set", ranges: this.escape(false) };
      case "*":
      case "+":
      case "?":
        throw new PatternFault(`has a \`${character}\` with nothing to repeat`);
      default:
        return { kind: "set", ranges: single(character) };
    }
  }

  private group(): Piece {
    if (this.peek() === "?") {
      if (this.eat("?=") || this.eat("?!") || this.eat("?<=") || this.eat("?<!")) {
        throw new PatternFault("uses look-around, which a grammar cannot guarantee");
      }
      if (this.eat("?<")) {
        while (this.take() !== ">");
      } else if (!this.eat("?:")) {
        throw new PatternFault("uses a group modifier that is not supported");
      }
    }
    const inside = this.alternatives();
    if (!this.eat(")")) throw new PatternFault("has a `(` that nothing closes");
    return inside;
  }

  private quantified(atom: Piece): Piece {
    let min: number;
    let max: number;
    const next = this.peek();
    if (next === "*") [min, max] = [0, Infinity];
    else if (next === "+") [min, max] = [1, Infinity];
    else if (next === "?") [min, max] = [0, 1];
    else {
      const counted =
        next === "{" ? /^\{(\d+)(,(\d*))?\}/.exec(this.characters.slice(this.at, this.at + 24).join("")) : null;
      if (counted === null) return atom;
      min = Number(counted[1]);
      max = counted[2] === undefined ? min : counted[3] === "" ? Infinity : Number(counted[3]);
      if (max < min) throw new PatternFault("has a repetition whose bounds are the wrong way round");
      if (min > MAX_COUNT || (max !== Infinity && max > MAX_COUNT)) {
        throw new PatternFault(`repeats more than ${MAX_COUNT} times`, true);
      }
      this.at += counted[0].length - 1;
    }
    this.at++;
    // A lazy quantifier matches the same texts.
    this.eat("?");
    if (["*", "+", "?"].includes(this.peek() ?? "")) throw new PatternFault("has two quantifiers in a row");
    if (atom.kind === "start" || atom.kind === "end") throw new PatternFault("repeats an anchor");
    return { kind: "repeat", of: atom, min, max };
  }

  private characterClass(): readonly Range[] {
    const negated = this.eat("^");
    const ranges: Range[] = [];
    while (!this.eat("]")) {
      const low = this.classAtom();
      if (this.peek() === "-" && this.peek(1) !== "]" && this.peek(1) !== undefined) {
        this.at++;
        const high = this.classAtom();
        const from = soleCodePoint(low);
        const to = soleCodePoint(high);
        if (from === undefined || to === undefined) {
          // `[\w-.]`: outside Unicode mode the hyphen is itself.
          ranges.push(...low, [0x2d, 0x2d], ...high);
          continue;
        }
        if (to < from) throw new PatternFault("has a character range whose ends are the wrong way round");
        ranges.push([from, to]);
      } else {
        ranges.push(...low);
      }
    }
    return negated ? complementRanges(ranges) : normalizeRanges(ranges);
  }

  private classAtom(): readonly Range[] {
    const character = this.take();
    return character === "\\" ? this.escape(true) : single(character);
  }

  private escape(inClass: boolean): readonly Range[] {
    const character = this.take();
    switch (character) {
      case "d":
        return DIGITS;
      case "D":
        return complementRanges(DIGITS);
      case "w":
        return WORD;
      case "W":
        return complementRanges(WORD);
      case "s":
        return SPACE;
      case "S":
        return complementRanges(SPACE);
      case "b":
        if (inClass) return [[8, 8]];
        throw new PatternFault("uses a word boundary, which is not supported");
      case "0":
        return [[0, 0]];
      case "x":
        return codePointRange(this.hex(2));
      case "c":
        return codePointRange((this.take().codePointAt(0) ?? 0) % 32);
      case "u":
        return codePointRange(this.unicodeEscape());
      case "p":
      case "P":
        throw new PatternFault("uses a Unicode property class, which is not supported");
    }
    const control = CONTROL_ESCAPES[character];
    if (control !== undefined) return codePointRange(control);
    if (/[A-Za-z1-9]/.test(character))
      throw new PatternFault(`uses the escape \`\\${character}\`, which is not supported`);
    return single(character);
  }

  private hex(digits: number): number {
    const text = this.characters.slice(this.at, this.at + digits).join("");
    if (!new RegExp(`^[0-9a-fA-F]{${digits}}$`).test(text)) throw new PatternFault("has a broken hexadecimal escape");
    this.at += digits;
    return Number.parseInt(text, 16);
  }

  private unicodeEscape(): number {
    if (this.eat("{")) {
      let text = "";
      for (let next = this.take(); next !== "}"; next = this.take()) text += next;
      const value = Number.parseInt(text, 16);
      if (!/^[0-9a-fA-F]{1,8}$/.test(text) || value > 0x10ffff) throw new PatternFault("has a broken Unicode escape");
      return value;
    }
    const high = this.hex(4);
    if (high >= 0xd800 && high <= 0xdbff && this.peek() === "\\" && this.peek(1) === "u") {
      const back = this.at;
      this.at += 2;
      const low = this.hex(4);
      if (low >= 0xdc00 && low <= 0xdfff) return 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
      this.at = back;
    }
    return high;
  }
}

function single(character: string): readonly Range[] {
  return codePointRange(character.codePointAt(0) ?? 0);
}

function codePointRange(code: number): readonly Range[] {
  return [[code, code]];
}

function soleCodePoint(ranges: readonly Range[]): number | undefined {
  const [only] = ranges;
  return ranges.length === 1 && only !== undefined && only[0] === only[1] ? only[0] : undefined;
}

/** The piece as a regex of full matches, with no anchor left anywhere inside. */
function withoutAnchors(piece: Piece): Regex {
  switch (piece.kind) {
    case "start":
    case "end":
      throw new PatternFault("has an anchor in a place where it cannot be guaranteed");
    case "set":
      return { kind: "set", ranges: normalizeRanges(piece.ranges) };
    case "sequence":
      return sequence(piece.parts.map(withoutAnchors));
    case "choice":
      return choice(piece.options.map(withoutAnchors));
    case "repeat":
      return repeat(withoutAnchors(piece.of), piece.min, piece.max);
  }
}

function hasAnchor(piece: Piece): boolean {
  switch (piece.kind) {
    case "start":
    case "end":
      return true;
    case "set":
      return false;
    case "sequence":
      return piece.parts.some(hasAnchor);
    case "choice":
      return piece.options.some(hasAnchor);
    case "repeat":
      return hasAnchor(piece.of);
  }
}

const ANYTHING = repeat(ANY_CHARACTER, 0, Infinity);

/** A search for `piece` anywhere, as a language of full matches: what is not anchored may be preceded and followed. */
function searched(piece: Piece, anchoredStart: boolean, anchoredEnd: boolean, cut: { happened: boolean }): Regex {
  // Without anchors inside, the options share what may come before and after them.
  if (piece.kind === "choice" && hasAnchor(piece)) {
    return choice(piece.options.map((option) => searched(option, anchoredStart, anchoredEnd, cut)));
  }
  const parts = piece.kind === "sequence" ? [...piece.parts] : [piece];
  let start = anchoredStart;
  let end = anchoredEnd;
  while (parts[0]?.kind === "start") {
    parts.shift();
    start = true;
  }
  while (parts.at(-1)?.kind === "end") {
    parts.pop();
    end = true;
  }
  const [only] = parts;
  // `^(a|b$)` and `(^a$|^b$)`: the anchors belong to the options.
  if (
    parts.length === 1 &&
    only !== undefined &&
    (only.kind === "choice" || only.kind === "sequence") &&
    hasAnchor(only)
  ) {
    return searched(only, start, end, cut);
  }
  const body = parts.length === 0 ? EMPTY : sequence(parts.map(withoutAnchors));
  // Searching for a long counted text keeps one thread of the matcher for each place where it may have begun. Such a
  // pattern is matched from end to end instead: fewer texts, all of them right.
  if (stateEstimate(body) > MAX_SEARCHED_STATES && !(start && end)) {
    cut.happened = true;
    return body;
  }
  return sequence([...(start ? [] : [ANYTHING]), body, ...(end ? [] : [ANYTHING])]);
}

/**
 * Parses a pattern that is searched for (JSON Schema's `pattern`) into the language of all texts in which it is found;
 * `narrow` where it is only a part of them.
 * Throws PatternFault.
 */
export function parseSearchPattern(source: string): { readonly regex: Regex; readonly narrow: boolean } {
  const cut = { happened: false };
  const regex = searched(parsePieces(source), false, false, cut);
  return { regex, narrow: cut.happened };
}

/** Parses a pattern that must match from end to end (the `regex` grammar kind). Throws PatternFault. */
export function parseFullPattern(source: string): Regex {
  return searched(parsePieces(source), true, true, { happened: false });
}

function parsePieces(source: string): Piece {
  if (source.length > MAX_PATTERN_LENGTH)
    throw new PatternFault(`is longer than ${MAX_PATTERN_LENGTH} characters`, true);
  return new Parser(source).parse();
}
