import { loadTokenizer, type Tokenizer } from "../../tokenizer/index.ts";

/** GPT-2's printable stand-ins for bytes, as `tokenizer.json` writes them. */
function byteAlphabet(): string[] {
  const printable = (byte: number): boolean =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printable(byte) ? byte : next++));
}

const template = `{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}`;

/** The files of a tiny tokenizer: one token a byte (id = its value), ChatML marks. */
export function byteTokenizerFiles(): { readonly tokenizer: string; readonly config: string } {
  const marks = ["<|im_start|>", "<|im_end|>"];
  const tokenizer = {
    version: "1.0",
    added_tokens: marks.map((content, index) => ({ id: 256 + index, content, special: true })),
    normalizer: null,
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    decoder: { type: "ByteLevel" },
    model: {
      type: "BPE",
      vocab: Object.fromEntries(byteAlphabet().map((text, byte) => [text, byte])),
      merges: [],
    },
  };
  return {
    tokenizer: JSON.stringify(tokenizer),
    config: JSON.stringify({ chat_template: template, eos_token: "<|im_end|>" }),
  };
}

/** A real tokenizer over that tiny vocabulary. */
export const byteTokenizer = (): Promise<Tokenizer> =>
  loadTokenizer({
    kind: "tokenizer.json",
    ...byteTokenizerFiles(),
    generationConfig: undefined,
    chatTemplate: undefined,
  });
