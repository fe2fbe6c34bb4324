import type { GenerationEvent, TextEvent } from "../../backends/backend.ts";
import type { Tokenizer } from "../../tokenizer/index.ts";

/** Turns what one kind of backend said into what the other kind can go on from. */
export type TextCodec = Pick<Tokenizer, "encode" | "decoder">;

/**
 * What the caller has of one choice, whichever backends said it. Tokens come first: a backend of tokens that follows one of
 * text is given the text as tokens, so that from there on there are only tokens again.
 */
export class Sent {
  readonly #codec: TextCodec | undefined;
  #ids: number[] = [];
  #text = "";
  #continuable = true;
  #nothing = true;
  /** Grows with everything handed to the caller, also over a new beginning. */
  progress = 0;

  constructor(codec: TextCodec | undefined) {
    this.#codec = codec;
  }

  get nothing(): boolean {
    return this.#nothing;
  }

  /** Some of it came as text, so that a backend of tokens cannot go on exactly where it ended. */
  get hasText(): boolean {
    return this.#text !== "" || !this.#continuable;
  }

  take(event: Extract<GenerationEvent, { type: "tokens" }> | TextEvent): void {
    this.#nothing = false;
    this.progress++;
    if (event.type === "tokens") {
      for (const id of event.ids) this.#ids.push(id);
      return;
    }
    if (this.#text === "" && event.delta !== "") this.#dropBegunCharacter();
    this.#text += event.delta;
    // No API takes the beginning of a call, a refusal or a thought to go on from.
    if (event.toolCalls !== undefined || event.refusal !== undefined || event.reasoning !== undefined) {
      this.#continuable = false;
    }
  }

  /** For a backend of tokens; undefined where it cannot be told in tokens. */
  tokens(): readonly number[] | undefined {
    if (!this.hasText) return this.#ids;
    if (!this.#continuable || this.#codec === undefined) return undefined;
    return [...this.#ids, ...this.#codec.encode(this.#text)];
  }

  /** From here on a backend of tokens goes on from `ids`. */
  asTokens(ids: readonly number[]): void {
    if (this.#text === "") return;
    this.#ids = [...ids];
    this.#text = "";
  }

  /** For a backend of text: whole characters only, as the caller has them; undefined where it cannot be told as text. */
  text(): string | undefined {
    if (!this.#continuable) return undefined;
    if (this.#ids.length === 0) return this.#text;
    return this.#codec === undefined ? undefined : this.#codec.decoder().pushAll(this.#ids) + this.#text;
  }

  /** Tokens as well as they can be told; exact where all of it came as tokens. */
  get count(): number {
    if (this.#text === "") return this.#ids.length;
    return this.#ids.length + (this.#codec === undefined ? 0 : this.#codec.encode(this.#text).length);
  }

  get ids(): readonly number[] {
    return this.#ids;
  }

  /** The caller never saw a character that the tokens only began, and the text that follows stands in its place. */
  #dropBegunCharacter(): void {
    if (this.#codec === undefined || this.#codec.decoder().pushAll(this.#ids) === decodeWhole(this.#codec, this.#ids))
      return;
    this.#ids = Array.from(this.#codec.encode(this.#codec.decoder().pushAll(this.#ids)));
  }

  forget(): void {
    this.#ids = [];
    this.#text = "";
    this.#continuable = true;
    this.#nothing = true;
  }
}

function decodeWhole(codec: TextCodec, ids: readonly number[]): string {
  const decoder = codec.decoder();
  return decoder.pushAll(ids) + decoder.flush();
}
