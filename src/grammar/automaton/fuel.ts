import { tooComplex } from "../refusal.ts";

/** Work that one compilation may still do; every loop whose length a caller can choose draws from it. */
export class Fuel {
  private left: number;

  constructor(amount: number) {
    this.left = amount;
  }

  /** Steps that are left. */
  get remaining(): number {
    return this.left;
  }

  /** Throws a Refusal when nothing is left. */
  spend(amount: number): void {
    this.left -= amount;
    if (this.left < 0) throw tooComplex("", "The grammar takes too much work to compile.");
  }
}
