import { createHash } from "node:crypto";
import { describe, expect, it } from "vitest";
import { type ReadAt, readGgufMetadata } from "./gguf-metadata.ts";
import { loadTokenizer, TokenKind } from "./index.ts";

/** Writes GGUF metadata by hand, so that files no tool would write can be tried. */
class GgufWriter {
  readonly #parts: Uint8Array[] = [];
  #keys = 0;

  static u32(value: number): Uint8Array {
    return new Uint8Array(new Uint32Array([value]).buffer);
  }

  static u64(value: bigint | number): Uint8Array {
    return new Uint8Array(new BigUint64Array([BigInt(value)]).buffer);
  }

  static string(text: string): Uint8Array {
    const bytes = new TextEncoder().encode(text);
    return Buffer.concat([GgufWriter.u64(bytes.length), bytes]);
  }

  raw(key: string, type: number, ...value: Uint8Array[]): this {
    this.#keys++;
    this.#parts.push(GgufWriter.string(key), GgufWriter.u32(type), ...value);
    return this;
  }

  string(key: string, value: string): this {
    return this.raw(key, 8, GgufWriter.string(value));
  }

  u32(key: string, value: number): this {
    return this.raw(key, 4, GgufWriter.u32(value));
  }

  strings(key: string, values: readonly string[]): this {
    return this.raw(
      key,
      9,
      GgufWriter.u32(8),
      GgufWriter.u64(values.length),
      ...values.map((value) => GgufWriter.string(value)),
    );
  }

  i32s(key: string, values: readonly number[]): this {
    return this.raw(
      key,
      9,
      GgufWriter.u32(5),
      GgufWriter.u64(values.length),
      new Uint8Array(Int32Array.from(values).buffer),
    );
  }

  bytes(options: { magic?: string; version?: number; keys?: bigint | number } = {}): Uint8Array {
    const head = [
      new TextEncoder().encode(options.magic ?? "GGUF"),
      GgufWriter.u32(options.version ?? 3),
      GgufWriter.u64(0),
    ];
    return Buffer.concat([...head, GgufWriter.u64(options.keys ?? this.#keys), ...this.#parts]);
  }
}

const reader =
  (bytes: Uint8Array): ReadAt =>
  (offset, length) =>
    Promise.resolve(bytes.subarray(offset, offset + length));

const TOKENS = ["<|end|>", "a", "b", "Ġ", "ab", "Ġab", "é", "<tool>", "<|pad|>"];
const KINDS = [3, 1, 1, 1, 1, 1, 1, 4, 5];

function tinyGguf(change: (writer: GgufWriter) => GgufWriter = (writer) => writer): GgufWriter {
  return change(
    new GgufWriter()
      .string("general.architecture", "llama")
      .u32("llama.context_length", 2048)
      .i32s("skipped.numbers", [1, 2, 3])
      .strings("skipped.texts", ["x", "yy"])
      .raw("skipped.double", 12, new Uint8Array(8))
      .string("tokenizer.ggml.model", "gpt2")
      .strings("tokenizer.ggml.tokens", TOKENS)
      .i32s("tokenizer.ggml.token_type", KINDS)
      .strings("tokenizer.ggml.merges", ["a b", "Ġ ab"])
      .u32("tokenizer.ggml.eos_token_id", 0),
  );
}

const load = (writer: GgufWriter) => loadTokenizer({ kind: "gguf", readAt: reader(writer.bytes()) });

describe("a tokenizer out of a GGUF", () => {
  it("encodes, decodes and knows its context", async () => {
    const tokenizer = await load(tinyGguf());
    expect([...tokenizer.encode("ab ab b")]).toEqual([4, 5, 3, 2]);
    expect(tokenizer.decode([4, 5, 0])).toBe("ab ab");
    expect(tokenizer.contextLength).toBe(2048);
    expect(tokenizer.vocabulary.stopIds).toEqual([0]);
    expect(tokenizer.vocabulary.kind(7)).toBe(TokenKind.userDefined);
    expect(tokenizer.chatTemplate).toBeUndefined();
  });

  it("has the hash that the documented bytes have", async () => {
    const tokenizer = await load(tinyGguf());
    const texts = ["<|end|>", "a", "b", " ", "ab", " ab", "\u00e9", "<tool>", "<|pad|>"];
    const parts: Uint8Array[] = [GgufWriter.u32(texts.length)];
    texts.forEach((text, id) => {
      // The alphabet's é is the byte E9, not the character's UTF-8.
      const bytes = text === "\u00e9" ? Uint8Array.of(0xe9) : new TextEncoder().encode(text);
      parts.push(Uint8Array.of(KINDS[id] ?? 0), GgufWriter.u32(bytes.length), bytes);
    });
    parts.push(GgufWriter.u32(1), GgufWriter.u32(0));
    const vocabularyHash = createHash("sha256").update(Buffer.concat(parts)).digest("hex");
    expect(tokenizer.vocabulary.vocabularyHash).toBe(vocabularyHash);

    const settings = JSON.stringify({
      ignoreMerges: false,
      normalization: "none",
      preTokenizer: [{ kind: "byteLevel", addPrefixSpace: false, useRegex: true }],
    });
    const merges = [1, 2, 4, 3, 4, 5];
    const image = [
      Buffer.from(vocabularyHash),
      GgufWriter.u32(2),
      ...merges.map(GgufWriter.u32),
      GgufWriter.u32(settings.length),
      Buffer.from(settings),
    ];
    expect(tokenizer.fingerprint).toBe(createHash("sha256").update(Buffer.concat(image)).digest("hex"));
  });

  it("changes its hash with any token, kind or stop id, and only its fingerprint with merges and pre-tokenizer", async () => {
    const base = await load(tinyGguf());
    const withStop = await load(tinyGguf((writer) => writer.u32("tokenizer.ggml.eot_token_id", 8)));
    expect(withStop.vocabulary.vocabularyHash).not.toBe(base.vocabulary.vocabularyHash);
    const qwen = await load(tinyGguf((writer) => writer.string("tokenizer.ggml.pre", "qwen2")));
    expect(qwen.vocabulary.vocabularyHash).toBe(base.vocabulary.vocabularyHash);
    expect(qwen.fingerprint).not.toBe(base.fingerprint);
  });

  it.each<[string, (writer: GgufWriter) => GgufWriter, string]>([
    ["a SentencePiece model", (w) => w.string("tokenizer.ggml.model", "llama"), 'tokenizer model "llama"'],
    ["an unknown pre-tokenizer", (w) => w.string("tokenizer.ggml.pre", "someday"), 'pre-tokenizer "someday"'],
    ["a merge of unknown tokens", (w) => w.strings("tokenizer.ggml.merges", ["a zz"]), "merge 0"],
    ["an end token outside", (w) => w.u32("tokenizer.ggml.eos_token_id", 99), "99 lies outside"],
    ["kinds for other tokens", (w) => w.i32s("tokenizer.ggml.token_type", [1]), "token_type"],
    ["an unknown kind", (w) => w.i32s("tokenizer.ggml.token_type", [9, 1, 1, 1, 1, 1, 1, 1, 1]), "unknown type 9"],
    ["tokens that are numbers", (w) => w.i32s("tokenizer.ggml.tokens", [1, 2]), "tokenizer.ggml.tokens"],
  ])("is refused with %s", async (_, change, message) => {
    await expect(load(tinyGguf(change))).rejects.toThrow(message);
  });
});

describe("GGUF metadata", () => {
  it("is read in as many pieces as it takes", async () => {
    const long = "x".repeat(9 << 20);
    const bytes = new GgufWriter().string("long", long).u32("after", 7).bytes();
    const asked: number[] = [];
    const { values } = await readGgufMetadata((offset, length) => {
      asked.push(offset);
      return reader(bytes)(offset, length);
    });
    expect(values.get("after")).toBe(7);
    expect(values.get("long")).toBe(long);
    expect(asked).toEqual([0, 4 << 20, 8 << 20]);
  });

  it("is refused, not misread, when the file is cut anywhere", async () => {
    const bytes = tinyGguf().bytes();
    for (let length = 0; length < bytes.length; length++) {
      await expect(readGgufMetadata(reader(bytes.subarray(0, length)))).rejects.toMatchObject({
        code: "bad_tokenizer_file",
      });
    }
  });

  it.each<[string, Uint8Array, string]>([
    ["another file", new TextEncoder().encode("PK\u0003\u0004".repeat(20)), "magic"],
    ["an older version", tinyGguf().bytes({ version: 1 }), "version 1"],
    ["a big-endian file", tinyGguf().bytes({ version: 0x03000000 }), "version"],
    ["absurdly many keys", tinyGguf().bytes({ keys: 2n ** 40n }), "not plausible"],
    ["a count beyond 2^53", tinyGguf().bytes({ keys: 2n ** 60n }), "not plausible"],
    ["a string longer than any file", new GgufWriter().raw("k", 8, GgufWriter.u64(2n ** 45n)).bytes(), "not plausible"],
    [
      "an array longer than any file",
      new GgufWriter().raw("k", 9, GgufWriter.u32(4), GgufWriter.u64(2n ** 45n)).bytes(),
      "claims",
    ],
    ["an unknown type", new GgufWriter().raw("k", 13).bytes(), "type 13"],
    ["an empty key", new GgufWriter().u32("", 1).bytes(), "0 characters"],
  ])("of %s is refused with the reason", async (_, bytes, message) => {
    await expect(readGgufMetadata(reader(bytes))).rejects.toThrow(message);
  });

  it("does not recurse into arrays of arrays without end", async () => {
    const nested = Array.from({ length: 50 }, () => [GgufWriter.u32(9), GgufWriter.u64(1)]).flat();
    const bytes = new GgufWriter().raw("k", 9, ...nested).bytes();
    await expect(readGgufMetadata(reader(bytes), () => false)).rejects.toThrow("nested deeper");
  });
});
