// Names of members that the schema does not list. A name that it does list must not come again this way: JSON.parse keeps
// the last of two equal names, and the second value would have been checked against the wrong schema.
import { complementRanges, type Range, type Regex } from "../regex/ast.ts";
import { classOf, PLAIN_KEY_CHARACTER, RAW_RANGES } from "../regex/emit.ts";

// Each state of the excluding automaton costs a pass over the vocabulary when the grammar is compiled.
const MAX_STATES = 20;
const SPECIAL = /["\\\u0000-\u001f]/;

interface Trie {
  terminal: boolean;
  readonly children: Map<string, Trie>;
}

/**
 * A pattern for names (inside the quotes, without escapes, so that each has one spelling) other than `excluded`.
 * With many names it excludes whole prefixes: fewer names can be written, none of `excluded` ever.
 */
export function otherNames(excluded: readonly string[]): string {
  // Names that need an escape cannot be spelt by this pattern anyway.
  const names = excluded.filter((name) => !SPECIAL.test(name));
  if (names.length === 0) return `${PLAIN_KEY_CHARACTER}*`;
  const longest = Math.max(...names.map((name) => Array.from(name).length));
  let depth = longest;
  let trie = build(names, depth);
  while (depth > 1 && count(trie) > MAX_STATES) trie = build(names, --depth);
  return excluding(trie);
}

function build(names: readonly string[], depth: number): Trie {
  const root: Trie = { terminal: false, children: new Map() };
  for (const name of names) {
    let node = root;
    for (const character of Array.from(name).slice(0, depth)) {
      let child = node.children.get(character);
      if (child === undefined) {
        child = { terminal: false, children: new Map() };
        node.children.set(character, child);
      }
      node = child;
    }
    node.terminal = true;
    // Cut short: every name that begins like this is left out.
    if (Array.from(name).length > depth) node.children.set("", { terminal: true, children: new Map() });
  }
  return root;
}

function count(trie: Trie): number {
  let sum = 1;
  for (const child of trie.children.values()) sum += count(child);
  return sum;
}

function rangeOf(character: string): Range {
  const code = character.codePointAt(0) ?? 0;
  return [code, code];
}

function excluding(trie: Trie): string {
  const listed = [...trie.children.keys()].filter((character) => character !== "");
  // A name cut short here: nothing longer may be written either.
  const cut = trie.children.has("");
  const options: string[] = [];
  if (!cut) {
    const taken = [...listed.map(rangeOf), ...complementRanges(RAW_RANGES)];
    options.push(`${classOf(complementRanges(taken))}${PLAIN_KEY_CHARACTER}*`);
  }
  for (const character of listed) {
    const child = trie.children.get(character);
    if (child === undefined) continue;
    const rest = excluding(child);
    if (rest !== "") options.push(`${classOf([rangeOf(character)])}${rest}`);
  }
  if (options.length === 0) return "";
  return `(?:${options.join("|")})${trie.terminal ? "" : "?"}`;
}

/** True when no text can match both: their fixed beginnings already differ. */
export function startDifferently(a: Regex, b: Regex): boolean {
  const [x, y] = [fixedStart(a), fixedStart(b)];
  const shared = Math.min(x.length, y.length);
  return x.slice(0, shared) !== y.slice(0, shared);
}

function fixedStart(regex: Regex): string {
  const parts = regex.kind === "sequence" ? regex.parts : [regex];
  let text = "";
  for (const part of parts) {
    const [only] = part.kind === "set" ? part.ranges : [];
    if (part.kind !== "set" || part.ranges.length !== 1 || only === undefined || only[0] !== only[1]) break;
    text += String.fromCodePoint(only[0]);
  }
  return text;
}
