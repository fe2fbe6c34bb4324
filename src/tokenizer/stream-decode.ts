import { TokenKind, type Vocabulary } from "./vocabulary.ts";

/**
 * Token ids to text, piece by piece: a token may end inside a character, so what is not yet a whole character waits for
 * the next token. One decoder for each answer.
 */
export interface StreamDecoder {
  /** The text that this token completes; may be empty, never holds half a character. */
  push(id: number): string;
  /** Text of several tokens at once. */
  pushAll(ids: Iterable<number>): string;
  /** Ends the answer: bytes that still wait for the rest of their character become U+FFFD. The decoder is then as new. */
  flush(): string;
}

export interface DecoderOptions {
  /** Shows control tokens (`<|im_end|>`) as text instead of leaving them out. Default false. */
  readonly showControl?: boolean;
}

/** Bytes that are no UTF-8 become U+FFFD, one for each maximal broken part (WHATWG, and Python's `replace`). */
export function createStreamDecoder(vocabulary: Vocabulary, options: DecoderOptions = {}): StreamDecoder {
  const showControl = options.showControl ?? false;
  // ignoreBOM keeps U+FEFF: a model that answers with one meant it.
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  const shown = (id: number): boolean => {
    const kind = vocabulary.kind(id);
    return kind !== TokenKind.unused && (kind !== TokenKind.control || showControl);
  };
  return {
    push: (id) => (shown(id) ? decoder.decode(vocabulary.bytes(id), { stream: true }) : ""),
    pushAll(ids) {
      // One call of the decoder for all: its cost is in the call, not in the bytes.
      const parts: Uint8Array[] = [];
      let length = 0;
      for (const id of ids) {
        if (!shown(id)) continue;
        const bytes = vocabulary.bytes(id);
        parts.push(bytes);
        length += bytes.length;
      }
      const joined = new Uint8Array(length);
      let at = 0;
      for (const bytes of parts) {
        joined.set(bytes, at);
        at += bytes.length;
      }
      return decoder.decode(joined, { stream: true });
    },
    flush: () => decoder.decode(),
  };
}
