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

/** Texts of tokens that are whole characters, by id; null where one is not. Filled as they come. */
const wholeTexts = new WeakMap<Vocabulary, Map<number, string | null>>();

const strict = new TextDecoder("utf-8", { ignoreBOM: true, fatal: true });

function wholeText(bytes: Uint8Array): string | null {
  try {
    return strict.decode(bytes);
  } catch {
    return null;
  }
}

/** Bytes that are no UTF-8 become U+FFFD, one for each maximal broken part (WHATWG, and Python's `replace`). */
export function createStreamDecoder(vocabulary: Vocabulary, options: DecoderOptions = {}): StreamDecoder {
  const showControl = options.showControl ?? false;
  const texts = wholeTexts.get(vocabulary) ?? new Map<number, string | null>();
  wholeTexts.set(vocabulary, texts);
  // ignoreBOM keeps U+FEFF: a model that answers with one meant it. Made for the first token that is part of a character.
  let decoder: TextDecoder | undefined;
  /** The decoder may hold the beginning of a character. */
  let begun = false;
  const shown = (id: number): boolean => {
    const kind = vocabulary.kind(id);
    return kind !== TokenKind.unused && (kind !== TokenKind.control || showControl);
  };
  const push = (id: number): string => {
    if (!shown(id)) return "";
    let text = texts.get(id);
    if (text === undefined) {
      text = wholeText(vocabulary.bytes(id));
      texts.set(id, text);
    }
    if (text !== null && !begun) return text;
    decoder ??= new TextDecoder("utf-8", { ignoreBOM: true });
    begun = text === null;
    return decoder.decode(vocabulary.bytes(id), { stream: true });
  };
  return {
    push,
    pushAll(ids) {
      let text = "";
      for (const id of ids) text += push(id);
      return text;
    },
    flush() {
      begun = false;
      return decoder?.decode() ?? "";
    },
  };
}
