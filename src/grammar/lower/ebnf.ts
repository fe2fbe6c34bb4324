// The text of an XGrammar EBNF grammar, rule by rule.

/** A string literal. Escapes have a fixed width: `\x` would swallow every hexadecimal digit that follows. */
export function quoted(text: string): string {
  const body = Array.from(text, (character) => {
    const code = character.codePointAt(0) ?? 0;
    if (character === '"' || character === "\\") return `\\${character}`;
    return code < 0x20 || code > 0x7e ? `\\U${code.toString(16).padStart(8, "0")}` : character;
  });
  return `"${body.join("")}"`;
}

/** A Regex macro: compiled to one automaton inside its rule, where a group with `*` would become a rule of its own. */
export function regexMacro(pattern: string): string {
  return `Regex(${quoted(pattern)})`;
}

/** Collects rules. The first name asked for a body wins; equal bodies share one rule. */
export class EbnfWriter {
  private readonly rules: string[] = [];
  private readonly byBody = new Map<string, string>();
  private next = 0;
  size = 0;

  /** The name of a rule with this body, made if there is none yet. `option` is a rule option such as `max_chars=5`. */
  rule(hint: string, body: string, option = ""): string {
    const key = `${option}${body}`;
    const known = this.byBody.get(key);
    if (known !== undefined) return known;
    const name = this.reserve(hint);
    this.byBody.set(key, name);
    this.define(name, body, option);
    return name;
  }

  /** A name without a body yet, for recursion; `define` must follow. */
  reserve(hint: string): string {
    return `${hint}_${this.next++}`;
  }

  define(name: string, body: string, option = ""): void {
    const text = `${name}${option === "" ? "" : `[${option}]`} ::= ${body}`;
    this.size += text.length;
    this.rules.push(text);
  }

  text(root: string): string {
    return `root ::= ${root}\n${this.rules.join("\n")}\n`;
  }
}
