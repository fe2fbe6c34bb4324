// White space and the marks of JSON, as the policy has them. Each function returns the first state of what it adds before `next`.
import type { GrammarPolicy } from "../grammar.ts";
import type { Builder } from "./builder.ts";
import { Op } from "./format.ts";

export class Marks {
  private readonly builder: Builder;
  private readonly policy: GrammarPolicy;
  private readonly known = new Map<string, number>();

  constructor(builder: Builder, policy: GrammarPolicy) {
    this.builder = builder;
    this.policy = policy;
  }

  /** `,` and what may follow it. */
  comma(next: number): number {
    return this.builder.bytes(0x2c, 0x2c, this.separator(next));
  }

  /** `:` and what may follow it. */
  colon(next: number): number {
    return this.builder.bytes(0x3a, 0x3a, this.separator(next));
  }

  /** `{` or `[`, and what may follow it. */
  open(mark: "{" | "[", next: number): number {
    return this.builder.text(mark, this.inside(next));
  }

  /** What may stand before `}` or `]`, and the mark; then back. */
  close(mark: "}" | "]"): number {
    return this.inside(this.builder.text(mark, this.builder.back));
  }

  private separator(next: number): number {
    const { whitespace } = this.policy;
    return whitespace.kind === "bounded"
      ? this.run(whitespace.max, next)
      : this.once(`s${next}`, () => this.builder.state(Op.jump, [next], [0x20, 0x20, next]));
  }

  private inside(next: number): number {
    const { whitespace } = this.policy;
    return whitespace.kind === "bounded" ? this.run(whitespace.max, next) : next;
  }

  /** Up to `most` characters of white space. */
  private run(most: number, next: number): number {
    let state = next;
    for (let i = 1; i <= most; i++) {
      const after = state;
      state = this.once(`${i},${next}`, () =>
        this.builder.state(Op.jump, [next], [0x09, 0x0a, after, 0x20, 0x20, after]),
      );
    }
    return state;
  }

  private once(key: string, make: () => number): number {
    const known = this.known.get(key);
    if (known !== undefined) return known;
    const id = make();
    this.known.set(key, id);
    return id;
  }
}
