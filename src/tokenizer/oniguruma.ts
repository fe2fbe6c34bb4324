import { tokenizerFault } from "./fault.ts";

/**
 * Turns a pre-tokenizer's pattern, written for Oniguruma (Ruby syntax, UTF-8), into a JavaScript RegExp with the `u`
 * flag that cuts text at the same places. What differs and is translated:
 *   \s \S          Unicode White_Space (JavaScript's \s adds U+FEFF and lacks U+0085)
 *   \d \D \w \W    Unicode classes instead of ASCII
 *   ^ $ .          line starts and ends, anything but \n
 *   X?+ X*+ X++    possessive: JavaScript has none; a captured look-ahead and a back reference keep it from giving back
 *   (?>...)        atomic group: the same way
 *   (?i:...)       stays; both know it
 * What has no translation here is refused, so that no tokenizer is silently wrong.
 */
export function translatePattern(pattern: string): RegExp {
  try {
    return new RegExp(new Translation(pattern).run(), "gu");
  } catch (error) {
    if (error instanceof SyntaxError)
      throw tokenizerFault(`pre-tokenizer pattern is not understood: ${error.message}`, error);
    throw error;
  }
}

const CLASS_ESCAPES: Readonly<Record<string, string>> = {
  s: "\\p{White_Space}",
  S: "\\P{White_Space}",
  d: "\\p{Nd}",
  D: "\\P{Nd}",
};
/** Word characters need four classes, which have no short form outside brackets. */
const WORD = "\\p{L}\\p{M}\\p{Nd}\\p{Pc}";
/** Escapes with the same meaning in both. */
const SHARED_ESCAPES = new Set(["n", "r", "t", "f", "v"]);
const META = new Set([..."\\^$.|?*+()[]{}/"]);

class Translation {
  readonly #source: readonly string[];
  #at = 0;
  #out = "";
  /** Where the last complete atom begins in `#out`; -1 = there is none to repeat. */
  #atom = -1;
  #captures = 0;
  readonly #groups: { readonly start: number; readonly atomic: number }[] = [];

  constructor(pattern: string) {
    this.#source = [...pattern];
  }

  run(): string {
    while (this.#at < this.#source.length) this.#step();
    if (this.#groups.length > 0) throw this.#refuse("a group is not closed");
    return this.#out;
  }

  #step(): void {
    const character = this.#source[this.#at] as string;
    switch (character) {
      case "\\":
        this.#emitAtom(this.#escape(false));
        return;
      case "[":
        this.#emitAtom(this.#characterClass());
        return;
      case "(":
        this.#openGroup();
        return;
      case ")":
        this.#closeGroup();
        return;
      case "?":
      case "*":
      case "+":
      case "{":
        this.#quantifier();
        return;
      case "|":
        this.#at++;
        this.#out += "|";
        this.#atom = -1;
        return;
      case "^":
        this.#at++;
        this.#emitAtom("(?<=\\n|(?<![^]))");
        return;
      case "$":
        this.#at++;
        this.#emitAtom("(?=\\n|(?![^]))");
        return;
      case ".":
        this.#at++;
        this.#emitAtom("[^\\n]");
        return;
      default:
        this.#at++;
        this.#emitAtom(character === "]" || character === "}" ? `\\${character}` : character);
    }
  }

  #emitAtom(text: string): void {
    this.#atom = this.#out.length;
    this.#out += text;
  }

  #escape(inClass: boolean): string {
    const letter = this.#source[this.#at + 1];
    if (letter === undefined) throw this.#refuse("it ends in a backslash");
    this.#at += 2;
    const shared = CLASS_ESCAPES[letter];
    if (shared !== undefined) return shared;
    if (letter === "w") return inClass ? WORD : `[${WORD}]`;
    if (letter === "W" && !inClass) return `[^${WORD}]`;
    if (SHARED_ESCAPES.has(letter)) return `\\${letter}`;
    if (letter === "p" || letter === "P") return `\\${letter}${this.#property()}`;
    if (letter === "x" || letter === "u") return this.#codePoint(letter);
    if (/[A-Za-z0-9]/.test(letter)) throw this.#refuse(`the escape \\${letter} has no translation`);
    // `\-` is an error outside brackets in `u` mode, and a range without the backslash inside them.
    return META.has(letter) || (inClass && letter === "-") ? `\\${letter}` : letter;
  }

  /** `{L}`, `{Han}` (a script in Oniguruma, `Script=Han` in JavaScript), `{^L}` is refused. */
  #property(): string {
    const rest = this.#source.slice(this.#at).join("");
    const name = /^\{([A-Za-z_]+)\}/.exec(rest)?.[1];
    if (name === undefined) throw this.#refuse("a property is not written as \\p{Name}");
    this.#at += name.length + 2;
    for (const candidate of [name, `Script=${name}`]) {
      try {
        new RegExp(`\\p{${candidate}}`, "u");
        return `{${candidate}}`;
      } catch {
        // Not a general category or binary property: tried as a script next.
      }
    }
    throw this.#refuse(`the property ${name} is unknown`);
  }

  #codePoint(letter: "x" | "u"): string {
    const rest = this.#source.slice(this.#at).join("");
    const match =
      letter === "x" ? /^(?:\{([0-9A-Fa-f]{1,6})\}|([0-9A-Fa-f]{2}))/.exec(rest) : /^([0-9A-Fa-f]{4})/.exec(rest);
    const hex = match?.[1] ?? match?.[2];
    if (match === null || hex === undefined) throw this.#refuse(`the escape \\${letter} is incomplete`);
    this.#at += match[0].length;
    return `\\u{${hex}}`;
  }

  #characterClass(): string {
    let out = "[";
    this.#at++;
    if (this.#source[this.#at] === "^") {
      out += "^";
      this.#at++;
    }
    for (let first = true; ; first = false) {
      const character = this.#source[this.#at];
      if (character === undefined) throw this.#refuse("a character class is not closed");
      if (character === "]" && !first) {
        this.#at++;
        return `${out}]`;
      }
      if (character === "\\") {
        out += this.#escape(true);
        continue;
      }
      // Ruby's nested sets and `&&` are read as literals by JavaScript's `u` mode.
      if (character === "[") throw this.#refuse("nested character classes have no translation");
      if (character === "&" && this.#source[this.#at + 1] === "&")
        throw this.#refuse("class intersection has no translation");
      out += character === "]" ? "\\]" : character;
      this.#at++;
    }
  }

  #openGroup(): void {
    const rest = this.#source.slice(this.#at, this.#at + 8).join("");
    const start = this.#out.length;
    const head = /^\((?:\?(?::|=|!|<=|<!|>|i:|-i:))?/.exec(rest)?.[0] ?? "(";
    if (head === "(" && rest[1] === "?") throw this.#refuse(`the group ${rest.slice(0, 4)} has no translation`);
    this.#at += head.length;
    let atomic = 0;
    if (head === "(?>") {
      atomic = ++this.#captures;
      this.#out += `(?:(?=(?<a${atomic}>`;
    } else {
      // Capturing is of no use to a splitter, and would make `\k` numbering depend on the pattern.
      this.#out += head === "(" ? "(?:" : head;
    }
    this.#groups.push({ start, atomic });
    this.#atom = -1;
  }

  #closeGroup(): void {
    const group = this.#groups.pop();
    if (group === undefined) throw this.#refuse("a group is closed that was never opened");
    this.#at++;
    this.#out += group.atomic > 0 ? `))\\k<a${group.atomic}>)` : ")";
    this.#atom = group.start;
  }

  #quantifier(): void {
    const rest = this.#source.slice(this.#at).join("");
    const match = /^(?:[?*+]|\{\d*,?\d*\})/.exec(rest);
    if (match === null || this.#atom < 0) throw this.#refuse(`nothing to repeat at ${this.#at}`);
    let quantifier = match[0];
    if (quantifier === "{}" || quantifier === "{,}") throw this.#refuse("an empty repetition");
    // {,n} is {0,n} in Ruby.
    if (quantifier.startsWith("{,")) quantifier = `{0${quantifier.slice(1)}`;
    this.#at += match[0].length;
    const next = this.#source[this.#at];
    const isInterval = quantifier.startsWith("{");
    if (next === "?") {
      // In Ruby `{n}?` is an optional `{n}`, not a lazy one.
      if (isInterval && !quantifier.includes(",")) throw this.#refuse("{n}? has no translation");
      this.#at++;
      this.#out += `${quantifier}?`;
    } else if (next === "+" && !isInterval) {
      this.#at++;
      this.#possessive(quantifier);
    } else if (next === "+") {
      // Ruby reads `{n,m}+` as a repeated repetition, not as a possessive one, and so does HF tokenizers.
      this.#at++;
      this.#out = `${this.#out.slice(0, this.#atom)}(?:${this.#out.slice(this.#atom)}${quantifier})+`;
    } else {
      this.#out += quantifier;
    }
    this.#atom = -1;
  }

  #possessive(quantifier: string): void {
    const name = `a${++this.#captures}`;
    const atom = this.#out.slice(this.#atom);
    this.#out = `${this.#out.slice(0, this.#atom)}(?:(?=(?<${name}>${atom}${quantifier}))\\k<${name}>)`;
  }

  #refuse(reason: string): Error {
    return tokenizerFault(`pre-tokenizer pattern ${JSON.stringify(this.#source.join(""))}: ${reason}`);
  }
}
