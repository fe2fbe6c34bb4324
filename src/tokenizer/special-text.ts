import type { AddedToken } from "./definition.ts";
import { escapeLiteral } from "./pre-tokenizer.ts";
import { TokenKind, type Vocabulary } from "./vocabulary.ts";

/** A rendered template cut at its special tokens: ordinary text, or the id of one token. */
export type RenderedPart = string | number;

/** Who wrote a string: the model in an earlier turn, or anyone else. */
export type Author = "caller" | "assistant";

/** White space as HF's `lstrip` and `rstrip` of an added token see it. */
const LEADING_SPACE = /^\p{White_Space}+/u;
const TRAILING_SPACE = /\p{White_Space}+$/u;

/** Markers come from Unicode's private use area. */
const PRIVATE_USE = /[\uE000-\uF8FF]/g;
const FIRST_MARKER = 0xe000;
const LAST_MARKER = 0xf8ff;

/**
 * Keeps callers' text from yielding special tokens, and the template's own from losing them.
 *
 * A template's output is one string, in which an `<|im_end|>` of the template and one sent by a caller look alike. So
 * before rendering, a marker character that occurs nowhere in the input is put inside everything in the caller's strings
 * that a special token could be made of. The rendered text is then cut at the special tokens that are still whole, which
 * only the template can have written; the markers are taken out of the rest, which is encoded as ordinary text. Text
 * without such matches, nearly all of it, is rendered as it is.
 *
 * - A match in any case counts, since templates may use `lower` or `upper`.
 * - A string's end that begins a special token, or its start that ends one, is marked too: two strings that a template
 *   puts side by side cannot join into a token.
 * - `userDefined` tokens (`<think>`, `<tool_call>`) stay whole in the assistant's own messages: the model wrote them,
 *   and templates look for them there (`'</think>' in content`). Control tokens never do.
 * - Tokens of one character cannot be broken from inside, so they are never taken out of rendered text.
 */
export class SpecialText {
  readonly #byText: ReadonlyMap<string, AddedToken>;
  readonly #whole: RegExp | undefined;
  readonly #breakers: Readonly<Record<Author, Breaker>>;

  constructor(addedTokens: readonly AddedToken[], vocabulary: Vocabulary) {
    const tokens = addedTokens.filter((token) => token.text.length > 1);
    const control = tokens.filter((token) => vocabulary.kind(token.id) === TokenKind.control);
    this.#byText = new Map(tokens.map((token) => [token.text, token]));
    this.#whole = anyOf(tokens, "gu");
    this.#breakers = { caller: new Breaker(tokens), assistant: new Breaker(control) };
  }

  /** `text` with the marker wherever a special token could be made of it. */
  shield(text: string, marker: string, author: Author): string {
    return this.#breakers[author].apply(text, marker);
  }

  /**
   * Cuts rendered text at the special tokens (the longest of those that begin at the same place), and takes the marker
   * out of what lies between. Empty parts are left out.
   */
  cut(rendered: string, marker: string): RenderedPart[] {
    const parts: RenderedPart[] = [];
    const add = (text: string): void => {
      const clean = text.includes(marker) ? text.replaceAll(marker, "") : text;
      if (clean.length > 0) parts.push(clean);
    };
    let end = 0;
    let stripNext = false;
    const between = (start: number, stop: number, stripEnd: boolean): void => {
      let text = rendered.slice(start, stop);
      if (stripNext) text = text.replace(LEADING_SPACE, "");
      if (stripEnd) text = text.replace(TRAILING_SPACE, "");
      add(text);
    };
    for (const match of this.#whole === undefined ? [] : rendered.matchAll(this.#whole)) {
      const token = this.#byText.get(match[0]);
      if (token === undefined) continue;
      between(end, match.index, token.stripLeft);
      parts.push(token.id);
      end = match.index + match[0].length;
      stripNext = token.stripRight;
    }
    between(end, rendered.length, false);
    return parts;
  }
}

/**
 * A character that occurs in none of `strings`; undefined when they hold all 6,400 of the private use area, which only
 * an attack does.
 */
export function chooseMarker(strings: Iterable<string>): string | undefined {
  const used = new Set<string>();
  for (const text of strings) {
    if (text.search(PRIVATE_USE) < 0) continue;
    for (const [character] of text.matchAll(PRIVATE_USE)) used.add(character);
  }
  for (let code = FIRST_MARKER; code <= LAST_MARKER; code++) {
    const marker = String.fromCharCode(code);
    if (!used.has(marker)) return marker;
  }
  return undefined;
}

/** Finds and breaks what could become one of `tokens`. */
class Breaker {
  readonly #any: RegExp | undefined;
  readonly #prefixes = new Set<string>();
  readonly #suffixes = new Set<string>();
  /** First and last code units of the tokens: most text has none of them where it would matter. */
  readonly #firsts = new Set<number>();
  readonly #lasts = new Set<number>();
  /** The same as `firsts`, where no change of case makes another character into one of them; else undefined. */
  readonly #openers: readonly string[] | undefined;
  #longest = 0;

  constructor(tokens: readonly AddedToken[]) {
    this.#any = anyOf(tokens, "giu");
    for (const { text } of tokens) {
      const lower = text.toLowerCase();
      this.#firsts.add(lower.charCodeAt(0));
      this.#lasts.add(lower.charCodeAt(lower.length - 1));
      for (let length = 1; length < lower.length; length++) {
        this.#prefixes.add(lower.slice(0, length));
        this.#suffixes.add(lower.slice(-length));
      }
      this.#longest = Math.max(this.#longest, lower.length - 1);
    }
    const openers = Array.from(this.#firsts, (code) => String.fromCharCode(code));
    this.#openers = openers.every((opener) => /^[!-@[-`{-~]$/.test(opener)) ? openers : undefined;
  }

  apply(text: string, marker: string): string {
    const places = this.#places(text);
    if (places.length === 0) return text;
    let shielded = "";
    let end = 0;
    for (const place of places) {
      shielded += text.slice(end, place) + marker;
      end = place;
    }
    return shielded + text.slice(end);
  }

  /** Offsets at which a marker is needed, ascending. */
  #places(text: string): number[] {
    const expression = this.#any;
    if (expression === undefined || text.length === 0) return [];
    const places: number[] = [];
    // Templates trim: the edges that count are those of the text without white space around it.
    const start = text.length - text.trimStart().length;
    const stop = text.trimEnd().length;
    const longest = Math.min(this.#longest, stop - start);
    for (let length = 1; length <= longest; length++) {
      if (!mayBe(text.charCodeAt(start + length - 1), this.#lasts)) continue;
      if (!this.#suffixes.has(text.slice(start, start + length).toLowerCase())) continue;
      places.push(start);
      break;
    }
    if (this.#openers === undefined || this.#openers.some((opener) => text.includes(opener))) {
      expression.lastIndex = 0;
      for (let match = expression.exec(text); match !== null; match = expression.exec(text)) {
        // Inside the match, after its first character; then on from there, since matches may overlap.
        const inside = match.index + ((text.codePointAt(match.index) ?? 0) > 0xffff ? 2 : 1);
        places.push(inside);
        expression.lastIndex = inside;
      }
    }
    for (let length = 1; length <= longest; length++) {
      if (!mayBe(text.charCodeAt(stop - length), this.#firsts)) continue;
      if (!this.#prefixes.has(text.slice(stop - length, stop).toLowerCase())) continue;
      places.push(stop);
      break;
    }
    return places;
  }
}

/** Whether a code unit may be one of `lower` in some case. Beyond ASCII, case is too odd to tell from one unit. */
function mayBe(code: number, lower: ReadonlySet<number>): boolean {
  return code > 0x7f || lower.has(code) || (code >= 0x41 && code <= 0x5a && lower.has(code | 0x20));
}

/** Longest first, so that of two tokens that begin alike the longer one matches. */
function anyOf(tokens: readonly AddedToken[], flags: string): RegExp | undefined {
  if (tokens.length === 0) return undefined;
  const texts = [...new Set(tokens.map((token) => token.text))].sort((a, b) => b.length - a.length);
  return new RegExp(texts.map(escapeLiteral).join("|"), flags);
}
