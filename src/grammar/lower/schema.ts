// Nodes to EBNF. Objects that left other names open by silence are closed here: the standard allows any extra member, but
// a model that may invent members seldom stops.
import type { GrammarPolicy } from "../grammar.ts";
import { whitespaceRules, type WhitespaceRules } from "../policy.ts";
import { tooComplex, unsupported } from "../refusal.ts";
import { type Regex, sequence, stateEstimate } from "../regex/ast.ts";
import { emitJsonString, JSON_CHARACTER, PLAIN_KEY_CHARACTER } from "../regex/emit.ts";
import type { Algebra } from "../schema/algebra.ts";
import { isArray, isObject } from "../schema/algebra.ts";
import type { ArrayNode, Json, Node, NumberNode, ObjectNode, StringNode, TextPattern } from "../schema/node.ts";
import { keepsManyThreads, wideStates } from "./cost.ts";
import { EbnfWriter, quoted, regexMacro } from "./ebnf.ts";
import { otherNames, startDifferently } from "./keys.ts";
import { FREE_NUMBER, numberPattern } from "./numbers.ts";

/** Work that a grammar may ask of the compiler; each wide state is a pass over the whole vocabulary. */
export interface LoweringBudget {
  readonly states: number;
  readonly textBytes: number;
}

const LONG_RUN = 24;
const MAX_ITEMS = 100_000;
const MAX_COUNTED_PROPERTIES = 2_000;
const MAX_SUBSET = 64;

/** EBNF of one schema; `root` is its start rule. Throws Refusal where the grammar would need too much or cannot be made. */
export function lowerSchema(
  root: Node,
  algebra: Algebra,
  origins: ReadonlyMap<number, string>,
  policy: GrammarPolicy,
  budget: LoweringBudget,
): string {
  return new Lowering(algebra, origins, policy, budget).lower(root);
}

class Lowering {
  private readonly algebra: Algebra;
  private readonly origins: ReadonlyMap<number, string>;
  private readonly budget: LoweringBudget;
  private readonly space: WhitespaceRules;
  private readonly out = new EbnfWriter();
  private readonly names = new Map<number, string>();
  private states = 0;
  private path = "";

  constructor(algebra: Algebra, origins: ReadonlyMap<number, string>, policy: GrammarPolicy, budget: LoweringBudget) {
    this.algebra = algebra;
    this.origins = origins;
    this.budget = budget;
    this.space = whitespaceRules(policy);
  }

  lower(root: Node): string {
    const name = this.value(root);
    return this.out.text(name);
  }

  /** The rule that matches a value of this node. */
  private value(node: Node): string {
    if (node.kind === "ref") return this.value(this.algebra.resolve(node));
    const known = this.names.get(node.id);
    if (known !== undefined) return known;
    const name = this.out.reserve(node.kind);
    this.names.set(node.id, name);
    const before = this.path;
    this.path = this.origins.get(node.id) ?? this.path;
    const body = this.body(node);
    this.out.define(name, body);
    if (this.out.size > this.budget.textBytes) {
      throw tooComplex("", "The schema's grammar is too large: fewer alternatives or properties are needed.");
    }
    this.path = before;
    return name;
  }

  private body(node: Node): string {
    switch (node.kind) {
      case "any":
        return this.algebra.nodes.everyType.map((type) => this.value(this.openly(type))).join(" | ");
      case "null":
        return '"null"';
      case "boolean":
        return '"true" | "false"';
      case "literal":
        return this.literal(node.value);
      case "union":
        return node.options.map((option) => this.value(option)).join(" | ");
      case "string":
        return this.string(node);
      case "number":
        return this.number(node);
      case "array":
        return this.array(node);
      case "object":
        return this.object(node);
      case "never":
      case "ref":
        throw unsupported(this.path, "Nothing satisfies this schema.");
    }
  }

  /** Inside `any`, an object is open: there is nothing listed that it could be closed to. */
  private openly(node: Node): Node {
    return node.kind === "object" ? this.algebra.nodes.make({ ...node, implicit: false }) : node;
  }

  private literal(value: Json): string {
    const { separator, inside } = this.space;
    if (isArray(value)) {
      if (value.length === 0) return join('"["', inside, '"]"');
      const items = value.map((item) => this.literal(item)).join(` "," ${separator} `);
      return join('"["', inside, items, inside, '"]"');
    }
    if (isObject(value)) {
      const entries = Object.entries(value).map(([key, item]) =>
        join(quoted(`${JSON.stringify(key)}:`), separator, this.literal(item)),
      );
      return entries.length === 0
        ? join('"{"', inside, '"}"')
        : join('"{"', inside, entries.join(` "," ${separator} `), inside, '"}"');
    }
    return quoted(JSON.stringify(value));
  }

  private charge(states: number): void {
    this.states += states;
    if (this.states > this.budget.states) {
      throw tooComplex(
        this.path,
        "Counted repetition (lengths, `{m,n}` in patterns) adds up to more than the budget allows.",
      );
    }
  }

  private string(node: StringNode): string {
    if (node.pattern !== undefined) return this.pattern(this.cutRegex(node.pattern));
    if (node.max === 0) return quoted('""');
    if (node.min > 1) this.charge(node.min);
    if (node.min > 100) throw tooComplex(this.path, "`minLength` above 100 is not supported.");
    const times = node.min === 0 ? "*" : node.min === 1 ? "+" : `{${node.min},}`;
    if (node.max === Infinity) return regexMacro(`"${JSON_CHARACTER}${times}"`);
    // The character budget counts escapes by their spelling, so it can only end a string early; and since a string may end
    // after any character, the engine never has to stretch the budget. One state where a counted loop needs `max`.
    const body = this.out.rule(
      "text",
      regexMacro(`${JSON_CHARACTER}${times}`),
      `max_chars=${Math.min(node.max, 1_000_000)}`,
    );
    return join('"\\""', body, '"\\""');
  }

  /**
   * A pattern between quotes. Long counted runs of one character class at its top level become a rule with a character
   * budget: the run may end after any of its characters once it has its minimum, so the engine never has to stretch the
   * budget, and one state does for hundreds. Escapes count by their spelling: such a run can only end early.
   */
  private pattern(regex: Regex, after = ""): string {
    const parts = regex.kind === "sequence" ? regex.parts : [regex];
    const pieces: string[] = [];
    let plain: Regex[] = [];
    const flush = (before: string, after: string) => {
      const body = plain.length === 0 ? "" : this.patternBody(sequence(plain));
      if (before + body + after !== "") pieces.push(regexMacro(`${before}${body}${after}`));
      plain = [];
    };
    let opened = false;
    for (const part of parts) {
      if (part.kind !== "repeat" || part.of.kind !== "set" || part.max === Infinity || part.max <= LONG_RUN) {
        plain.push(part);
        continue;
      }
      flush(opened ? "" : '"', "");
      opened = true;
      const run = this.patternBody({ ...part, max: Infinity });
      pieces.push(this.out.rule("run", regexMacro(run), `max_chars=${part.max}`));
    }
    flush(opened ? "" : '"', `"${after}`);
    return join(...pieces);
  }

  private cutRegex({ regex, uncut }: TextPattern): Regex {
    if (uncut === true)
      throw unsupported(
        `${this.path}/pattern`,
        "A length limit beside a pattern or format of this shape cannot be guaranteed.",
      );
    return regex;
  }

  private patternBody(regex: Regex): string {
    this.charge(wideStates(regex));
    if (stateEstimate(regex) > 20_000) throw tooComplex(this.path, "The pattern is too large.");
    if (keepsManyThreads(regex)) {
      throw tooComplex(
        this.path,
        "The pattern counts far after an unbounded repetition: matching it would be too slow.",
      );
    }
    return emitJsonString(regex);
  }

  private number(node: NumberNode): string {
    const pattern = numberPattern(node);
    if (pattern === undefined) throw unsupported(this.path, "No number satisfies these limits.");
    if (typeof pattern !== "string") throw unsupported(this.path, pattern.refused);
    if (pattern === FREE_NUMBER) return this.out.rule("decimal", regexMacro(FREE_NUMBER));
    return regexMacro(pattern);
  }

  private array(node: ArrayNode): string {
    const { separator, inside } = this.space;
    const open = join('"["', inside);
    const close = join(inside, '"]"');
    if (node.unique && node.max > 1) return this.subset(node, open, close);
    const comma = join('","', separator);
    const max = node.max > MAX_ITEMS ? Infinity : node.max;
    if (node.min > MAX_ITEMS) throw tooComplex(this.path, `\`minItems\` above ${MAX_ITEMS} is not supported.`);
    if (max === 0) return join(open, '"]"');
    // Built from the back: what may follow once i items are written.
    let rest = this.manyMore(node, comma, node.prefix.length, max);
    for (let i = node.prefix.length - 1; i >= 0; i--) {
      const item = node.prefix[i];
      if (item === undefined) continue;
      const here = join(i === 0 ? "" : comma, this.value(item), rest === "" ? "" : this.out.rule("tail", rest));
      rest = i >= node.min ? `(${here} | "")` : here;
    }
    return join(open, this.out.rule("items", rest === "" ? '""' : rest), close);
  }

  /** Items of one schema from index `from` on. */
  private manyMore(node: ArrayNode, comma: string, from: number, max: number): string {
    if (node.items.kind === "never" || max <= from) return "";
    const item = this.value(node.items);
    const least = Math.max(0, node.min - from);
    const most = max === Infinity ? "" : String(max - from);
    if (from > 0) return `(${comma} ${item}){${least},${most}}`;
    const more = `(${comma} ${item}){${Math.max(0, least - 1)},${max === Infinity ? "" : max - 1}}`;
    return least === 0 ? `(${item} ${more} | "")` : `${item} ${more}`;
  }

  /**
   * `uniqueItems` over finitely many values: each may come once, in the order of the schema. For anything else a grammar
   * would have to remember all items.
   */
  private subset(node: ArrayNode, open: string, close: string): string {
    const items = this.algebra.resolve(node.items);
    const options = (items.kind === "union" ? items.options : [items]).flatMap((option) =>
      option.kind === "boolean"
        ? [false, true].map((value) => this.algebra.nodes.make({ kind: "literal", value }))
        : [option],
    );
    const finite = options.every((option) => option.kind === "literal" || option.kind === "null");
    const where = this.path.endsWith("/uniqueItems") ? this.path : `${this.path}/uniqueItems`;
    if (!finite || node.prefix.length > 0 || options.length > MAX_SUBSET) {
      throw unsupported(
        where,
        "`uniqueItems: true` is only supported where the items are an `enum` of at most 64 values.",
      );
    }
    const most = Math.min(node.max, options.length);
    if (node.min > most) throw unsupported(where, "There are fewer distinct items than `minItems` asks for.");
    const comma = join('","', this.space.separator);
    const memo = new Map<string, string | undefined>();
    // What may follow after `used` items when options before `at` are spent.
    const from = (at: number, used: number): string | undefined => {
      const key = `${at},${used}`;
      if (memo.has(key)) return memo.get(key);
      const choices: string[] = used >= node.min ? ['""'] : [];
      const option = options[at];
      if (used < most && option !== undefined) {
        const rest = from(at + 1, used + 1);
        if (rest !== undefined) choices.push(join(used === 0 ? "" : comma, this.value(option), rest));
        const skipped = from(at + 1, used);
        if (skipped !== undefined) choices.push(skipped);
      }
      const name = choices.length === 0 ? undefined : this.out.rule("subset", choices.join(" | "));
      memo.set(key, name);
      return name;
    };
    const start = from(0, 0);
    if (start === undefined) throw unsupported(where, "Nothing satisfies this array.");
    return join(open, start, close);
  }

  private object(node: ObjectNode): string {
    const { separator, inside } = this.space;
    const comma = join('","', separator);
    const open = join('"{"', inside);
    const close = join(inside, '"}"');
    const listed = node.properties
      .filter((property) => property.value.kind !== "never")
      .map(({ name, value, required }) => ({
        required,
        // A rule of its own: the core copies small bodies into their users, and a chain of optional members would hold
        // each text once for every member before it.
        pair: this.out.rule("pair", join(quoted(`${JSON.stringify(name)}:`), separator, this.value(value))),
      }));
    const others = this.otherPairs(node);
    const requiredCount = listed.filter((property) => property.required).length;
    const mostListed = others === undefined ? listed.length : Infinity;
    if (node.min > mostListed) throw unsupported(this.path, "`minProperties` asks for more members than there are.");
    if (node.min > requiredCount || node.max < mostListed) {
      return join(open, this.counted(node, listed, others, comma), close);
    }
    const tail = others === undefined ? "" : `(${comma} ${others})*`;
    const follow = (from: number) =>
      listed.slice(from).map(({ pair, required }) => (required ? `${comma} ${pair}` : `(${comma} ${pair} | "")`));
    const firstRequired = listed.findIndex((property) => property.required);
    const optional = listed.slice(0, firstRequired < 0 ? listed.length : firstRequired);
    const begin = listed[firstRequired];
    // `first`: nothing is written yet; `next`: something is, so a comma comes first.
    let first: string;
    let next: string;
    if (begin === undefined) {
      first = others === undefined ? '""' : `(${others} (${comma} ${others})* | "")`;
      next = tail;
    } else {
      const after = join(...follow(firstRequired + 1), tail);
      first = join(begin.pair, after);
      next = join(comma, begin.pair, after);
    }
    for (const { pair } of optional.toReversed()) {
      const nextRule = next === "" ? "" : this.out.rule("next", next);
      const firstRule = this.out.rule("first", first);
      first = `${join(pair, nextRule)} | ${firstRule}`;
      next = `${join(comma, pair, nextRule)} | ${nextRule === "" ? '""' : nextRule}`;
    }
    return join(open, this.out.rule("members", first), close);
  }

  /** Objects with a limit on how many members they have: one rule for each position and count. */
  private counted(
    node: ObjectNode,
    listed: ReadonlyArray<{ readonly pair: string; readonly required: boolean }>,
    others: string | undefined,
    comma: string,
  ): string {
    const enough = Math.max(node.min, node.max === Infinity ? 0 : node.max);
    if (listed.length * enough > MAX_COUNTED_PROPERTIES) {
      throw tooComplex(this.path, "`minProperties` or `maxProperties` over so many properties is not supported.");
    }
    const memo = new Map<string, string | undefined>();
    const from = (at: number, used: number): string | undefined => {
      const count = node.max === Infinity ? Math.min(used, Math.max(node.min, 1)) : used;
      const key = `${at},${count}`;
      if (memo.has(key)) return memo.get(key);
      const name = this.countedStep(node, listed, others, comma, at, count, from);
      memo.set(key, name);
      return name;
    };
    const start = from(0, 0);
    if (start === undefined) {
      throw unsupported(
        this.path,
        "`minProperties` cannot be guaranteed here: a grammar cannot tell that further names differ.",
      );
    }
    return start;
  }

  private countedStep(
    node: ObjectNode,
    listed: ReadonlyArray<{ readonly pair: string; readonly required: boolean }>,
    others: string | undefined,
    comma: string,
    at: number,
    used: number,
    from: (at: number, used: number) => string | undefined,
  ): string | undefined {
    const before = used === 0 ? "" : comma;
    const property = listed[at];
    const choices: string[] = [];
    if (property !== undefined) {
      const rest = used < node.max ? from(at + 1, used + 1) : undefined;
      if (rest !== undefined) choices.push(join(before, property.pair, rest));
      const skipped = property.required ? undefined : from(at + 1, used);
      if (skipped !== undefined) choices.push(skipped);
    } else {
      if (used >= node.min) choices.push('""');
      const room = node.max - used;
      // One further name is surely new; of several, two might be the same.
      if (others !== undefined && room > 0 && node.min - used <= 1) {
        const more =
          room === 1 ? "" : `(${comma} ${others}){0,${room === Infinity ? "" : Math.min(room - 1, MAX_ITEMS)}}`;
        choices.push(join(before, others, more));
      }
    }
    return choices.length === 0 ? undefined : this.out.rule("members", choices.join(" | "));
  }

  /** A rule for one member whose name is not listed; undefined when there can be none. */
  private otherPairs(node: ObjectNode): string | undefined {
    const declared = node.properties.map((property) => property.name);
    const says = node.patterns.length > 0 || node.properties.some((property) => property.value.kind !== "never");
    const closed = node.implicit && says && !this.mustStayOpen(node);
    const pairs: string[] = [];
    for (const pattern of node.patterns) {
      // A listed name that fits the pattern could come twice; the listed one stays.
      if (declared.some((name) => new RegExp(pattern.source, "u").test(name))) continue;
      const others = node.patterns.filter(
        (other) => other !== pattern && !startDifferently(other.regex, pattern.regex),
      );
      const value = this.meetAll([pattern.value, ...others.map((other) => other.value)]);
      if (value.kind !== "never") pairs.push(this.pair(this.pattern(pattern.regex, ":"), value));
    }
    if (!closed && node.additional.kind !== "never") {
      const value = this.meetAll([node.additional, ...node.patterns.map((pattern) => pattern.value)]);
      const key = value.kind === "never" ? undefined : this.otherKey(node, declared);
      if (key !== undefined) pairs.push(this.pair(key, value));
    }
    return pairs.length === 0 ? undefined : this.out.rule("other", pairs.join(" | "));
  }

  /** Silence about other names is kept open when the object needs more members than are listed. */
  private mustStayOpen(node: ObjectNode): boolean {
    return (
      node.min > node.properties.filter((property) => property.value.kind !== "never").length &&
      node.patterns.length === 0
    );
  }

  private meetAll(values: readonly Node[]): Node {
    return values.reduce((all, value) => this.algebra.intersect(all, value), this.algebra.nodes.any);
  }

  private pair(key: string, value: Node): string {
    return join(key, this.space.separator, this.value(value));
  }

  private otherKey(node: ObjectNode, declared: readonly string[]): string | undefined {
    const names = this.algebra.resolve(node.names);
    if (names.kind === "any") {
      this.charge(Math.min(40, declared.join("").length));
      return regexMacro(`"${otherNames(declared)}":`);
    }
    if (names.kind !== "string") {
      throw unsupported(
        `${this.path}/propertyNames`,
        "`propertyNames` is supported with an enum, a pattern or a length only.",
      );
    }
    if (declared.some((name) => this.algebra.admits(names, name))) return undefined;
    if (names.pattern !== undefined) return this.pattern(this.cutRegex(names.pattern), ":");
    if (names.max > 200) {
      this.charge(names.min);
      return regexMacro(`"${PLAIN_KEY_CHARACTER}{${names.min},}":`);
    }
    this.charge(names.max);
    return regexMacro(`"${PLAIN_KEY_CHARACTER}{${names.min},${names.max}}":`);
  }
}

/** Parts of a sequence, the empty ones left out. */
function join(...parts: readonly string[]): string {
  return parts.filter((part) => part !== "").join(" ");
}
