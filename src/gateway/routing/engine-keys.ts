const firstCapacity = 64;
const maxLoad = 0.7;

/**
 * The blocks of one backend by its engine's own key: key -> chain key (prompt/blocks.ts). Typed arrays with linear probing,
 * 16 bytes an entry: a map of strings would take ten times that. Engine keys are opaque and may be long, so 64 bits of
 * their hash stand for them; of ten million, two meet with a chance of 3e-6, and then one block is misjudged.
 */
export class EngineKeys {
  #first = new Uint32Array(firstCapacity);
  #second = new Uint32Array(firstCapacity);
  /** Chain key + 1; 0 = free. */
  #chains = new Float64Array(firstCapacity);
  #size = 0;
  #hashFirst = 0;
  #hashSecond = 0;

  get size(): number {
    return this.#size;
  }

  get(key: string): number | undefined {
    const chain = this.#chains[this.#find(key)] ?? 0;
    return chain === 0 ? undefined : chain - 1;
  }

  has(key: string): boolean {
    return this.#chains[this.#find(key)] !== 0;
  }

  set(key: string, chain: number): void {
    if (this.#size + 1 > this.#chains.length * maxLoad) this.#grow();
    const at = this.#find(key);
    if (this.#chains[at] === 0) this.#size++;
    this.#put(at, this.#hashFirst, this.#hashSecond, chain + 1);
  }

  delete(key: string): void {
    const mask = this.#chains.length - 1;
    let hole = this.#find(key);
    if (this.#chains[hole] === 0) return;
    this.#size--;
    // Knuth's algorithm R (TAOCP 6.4): whoever stands behind its place because of this one moves up.
    for (let at = (hole + 1) & mask; this.#chains[at] !== 0; at = (at + 1) & mask) {
      const home = (this.#first[at] ?? 0) & mask;
      if (((at - home) & mask) < ((at - hole) & mask)) continue;
      this.#put(hole, this.#first[at] ?? 0, this.#second[at] ?? 0, this.#chains[at] ?? 0);
      hole = at;
    }
    this.#put(hole, 0, 0, 0);
  }

  *chains(): Generator<number> {
    for (const chain of this.#chains) if (chain !== 0) yield chain - 1;
  }

  clear(): void {
    this.#first = new Uint32Array(firstCapacity);
    this.#second = new Uint32Array(firstCapacity);
    this.#chains = new Float64Array(firstCapacity);
    this.#size = 0;
  }

  /** Its place, or the free one where it would be. Leaves its hash in the fields. */
  #find(key: string): number {
    this.#hash(key);
    return this.#place(this.#hashFirst, this.#hashSecond);
  }

  #place(first: number, second: number): number {
    const mask = this.#chains.length - 1;
    let at = first & mask;
    while (this.#chains[at] !== 0 && (this.#first[at] !== first || this.#second[at] !== second)) at = (at + 1) & mask;
    return at;
  }

  #put(at: number, first: number, second: number, chain: number): void {
    this.#first[at] = first;
    this.#second[at] = second;
    this.#chains[at] = chain;
  }

  #grow(): void {
    const [first, second, chains] = [this.#first, this.#second, this.#chains];
    this.#first = new Uint32Array(first.length * 2);
    this.#second = new Uint32Array(first.length * 2);
    this.#chains = new Float64Array(first.length * 2);
    for (let at = 0; at < chains.length; at++) {
      const chain = chains[at] ?? 0;
      if (chain === 0) continue;
      const [a, b] = [first[at] ?? 0, second[at] ?? 0];
      this.#put(this.#place(a, b), a, b, chain);
    }
  }

  /** Two lanes of MurmurHash3's mixing (Appleby, public domain), each sealed by its finaliser. */
  #hash(key: string): void {
    let a = 0x9e3779b9 ^ key.length;
    let b = 0x7f4a7c15 ^ key.length;
    for (let index = 0; index < key.length; index++) {
      const unit = key.charCodeAt(index);
      a = Math.imul(((a << 15) | (a >>> 17)) ^ unit, 0xcc9e2d51);
      b = Math.imul(((b << 13) | (b >>> 19)) ^ unit, 0x1b873593) + a;
    }
    this.#hashFirst = seal(a);
    this.#hashSecond = seal(b ^ a);
  }
}

function seal(value: number): number {
  let h = Math.imul(value ^ (value >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}
