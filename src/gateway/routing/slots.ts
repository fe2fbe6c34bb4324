/** Backends that one gateway can know at once; a slot is 11 bits of a KV index's entry. */
export const maxBackends = 2048;

/**
 * The number of each backend (or pool, or tenant): its place in every table that the gateway's threads share. A backend that comes back under
 * its old id gets a new slot, so nothing that was known of the old one is taken for the new one's. A slot that was given
 * up is the last to be used again: by then what its backend left in tables has expired.
 */
export class Slots {
  readonly #byId = new Map<string, number>();
  readonly #given: boolean;
  readonly #capacity: number;
  readonly #free: number[] = [];
  #next = 0;

  /** `given`: slots come only by `take` and `assume`; otherwise whoever is asked for gets one. */
  constructor(options: { readonly given?: boolean; readonly capacity?: number } = {}) {
    this.#given = options.given ?? false;
    this.#capacity = options.capacity ?? maxBackends;
  }

  of(id: string): number | undefined {
    const known = this.#byId.get(id);
    return known !== undefined || this.#given ? known : this.take(id);
  }

  /** A new slot for `id`; undefined when there are too many. */
  take(id: string): number | undefined {
    this.drop(id);
    const slot = this.#next < this.#capacity ? this.#next++ : this.#free.shift();
    if (slot !== undefined) this.#byId.set(id, slot);
    return slot;
  }

  drop(id: string): void {
    const slot = this.#byId.get(id);
    if (slot === undefined) return;
    this.#byId.delete(id);
    this.#free.push(slot);
  }

  /** Takes over what another thread's `Slots` gave out. */
  assume(slots: ReadonlyMap<string, number>): void {
    this.#byId.clear();
    for (const [id, slot] of slots) this.#byId.set(id, slot);
  }

  /** Slots given out so far, those included that were given up. */
  get size(): number {
    return this.#next;
  }

  get all(): ReadonlyMap<string, number> {
    return this.#byId;
  }
}
