import { readFileSync } from "node:fs";
import { beforeAll, describe, expect, it } from "vitest";
import { loadTokenizer, type Tokenizer } from "./index.ts";

const file = (): string =>
  readFileSync(new URL("../../test/goldens/tokenizer/tiny-bytelevel.json", import.meta.url), "utf8");

let tokenizer: Tokenizer;
let byteIds: readonly number[];
beforeAll(async () => {
  tokenizer = await loadTokenizer({ kind: "tokenizer.json", tokenizer: file() });
  const ids: number[] = [];
  for (let id = 0; id < tokenizer.vocabulary.size; id++) {
    const bytes = tokenizer.tokenBytes(id);
    if (bytes.length === 1) ids[bytes[0] ?? 0] = id;
  }
  byteIds = ids;
});

/** Ids of single-byte tokens: characters are cut at every possible place. */
const bytewise = (text: string): number[] => [...new TextEncoder().encode(text)].map((byte) => byteIds[byte] ?? -1);
const halfCharacter = /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]|\ufffd/;

describe("streaming decode", () => {
  const texts = [
    "plain",
    "é",
    "한국어",
    "😀👍🏽",
    "👩‍👩‍👧‍👦🇰🇷",
    "\ufeffafter a BOM\ufeff",
    "a\u0000b",
    "\u0301combining",
    "mixed é한😀 text",
  ];

  it.each(texts)("never shows half a character of %j", (text) => {
    const decoder = tokenizer.decoder();
    const parts = bytewise(text).map((id) => decoder.push(id));
    for (const part of parts) expect(part).not.toMatch(halfCharacter);
    expect(parts.join("") + decoder.flush()).toBe(text);
    // A character comes out with its last byte, not later.
    expect(parts.filter((part) => part !== "")).toHaveLength([...text].length);
  });

  it("shows a character that was cut off as U+FFFD when the answer ends, and starts anew", () => {
    const decoder = tokenizer.decoder();
    expect(decoder.pushAll(bytewise("ab😀").slice(0, -1))).toBe("ab");
    expect(decoder.flush()).toBe("\ufffd");
    expect(decoder.pushAll(bytewise("é")) + decoder.flush()).toBe("é");
  });

  it("shows bytes that are no UTF-8 as U+FFFD and goes on", () => {
    const decoder = tokenizer.decoder();
    const [euro = [], letter = []] = [bytewise("€"), bytewise("x")];
    const broken = [...euro.slice(0, 2), ...letter, byteIds[0x80] ?? -1, byteIds[0xff] ?? -1, ...letter];
    expect(broken.map((id) => decoder.push(id)).join("") + decoder.flush()).toBe("\ufffdx\ufffd\ufffdx");
  });

  it("leaves control tokens out unless asked, and they break no character", () => {
    const [first = -1, ...rest] = bytewise("é");
    const end = tokenizer.vocabulary.stopIds[0] ?? -1;
    expect(tokenizer.decode([first, end, ...rest])).toBe("é");
    expect(tokenizer.decoder({ showControl: true }).pushAll([end])).toBe("<|endoftext|>");
  });

  it("ignores ids that the vocabulary lacks", () => {
    expect(tokenizer.decode([tokenizer.vocabulary.size, 4_000_000_000, ...bytewise("ok")])).toBe("ok");
  });

  it("gives each token's bytes for logprobs: together they are the answer's", () => {
    const text = "Grüße 😀 from 서울\n";
    const ids = tokenizer.encode(text);
    expect([...ids].flatMap((id) => [...tokenizer.tokenBytes(id)])).toEqual([...new TextEncoder().encode(text)]);
  });
});
