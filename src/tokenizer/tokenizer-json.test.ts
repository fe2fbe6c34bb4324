import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it, vi } from "vitest";
import { loadTokenizer } from "./index.ts";
import { openTokenizer } from "./node.ts";

const golden = (): string =>
  readFileSync(new URL("../../test/goldens/tokenizer/tiny-split.json", import.meta.url), "utf8");
type Json = Record<string, unknown>;

/** The tiny tokenizer with parts of its file replaced. */
function changed(replace: Json, model: Json = {}): string {
  const file = JSON.parse(golden());
  return JSON.stringify({ ...file, ...replace, model: { ...file.model, ...model } });
}

describe("a tokenizer.json", () => {
  it.each<[string, string, string]>([
    ["no JSON", "{", "is not JSON"],
    ["another model", changed({}, { type: "Unigram" }), "model.type"],
    ["SentencePiece's byte fallback", changed({}, { byte_fallback: true }), "byte_fallback"],
    ["dropout", changed({}, { dropout: 0.1 }), "dropout"],
    ["a suffix for word ends", changed({}, { end_of_word_suffix: "</w>" }), "end_of_word_suffix"],
    ["a merge that is no pair", changed({}, { merges: [["a", "b", "c"]] }), "merge 0"],
    ["a merge of unknown tokens", changed({}, { merges: ["zz yy"] }), "merge 0"],
    ["an id that is no index", changed({}, { vocab: { a: -1 } }), '"a"'],
    ["an unknown pre-tokenizer", changed({ pre_tokenizer: { type: "Metaspace" } }), "Metaspace"],
    ["no pre-tokenizer", changed({ pre_tokenizer: null }), "pre_tokenizer"],
    ["an unknown normaliser", changed({ normalizer: { type: "Lowercase" } }), "Lowercase"],
    [
      "a pattern without translation",
      changed({ pre_tokenizer: { type: "Split", pattern: { Regex: "\\G" }, behavior: "Isolated" } }),
      "pre-tokenizer",
    ],
  ])("with %s is refused, naming it", async (_, tokenizer, message) => {
    await expect(loadTokenizer({ kind: "tokenizer.json", tokenizer })).rejects.toThrow(message);
    await expect(loadTokenizer({ kind: "tokenizer.json", tokenizer })).rejects.toMatchObject({
      code: "bad_tokenizer_file",
    });
  });

  it("has the same fingerprint whether its merges are pairs or texts", async () => {
    const file: { model: { merges: [string, string][] } } = JSON.parse(golden());
    const texts = changed({}, { merges: file.model.merges.map((pair) => pair.join(" ")) });
    const [first, second] = await Promise.all(
      [golden(), texts].map((tokenizer) => loadTokenizer({ kind: "tokenizer.json", tokenizer })),
    );
    expect(first?.fingerprint).toBe(second?.fingerprint);
  });

  it("takes white space beside a token that strips it", async () => {
    const file: { added_tokens: Json[] } = JSON.parse(golden());
    const added_tokens = file.added_tokens.map((token) => ({
      ...token,
      lstrip: token.content === "<|im_end|>",
      rstrip: token.content === "<|im_start|>",
    }));
    const tokenizer = await loadTokenizer({
      kind: "tokenizer.json",
      tokenizer: changed({ added_tokens }),
      chatTemplate: "<|im_start|> \n{{ messages[0].content }}\n <|im_end|> tail",
    });
    const ids = tokenizer.encodeChat({ messages: [{ role: "user", content: "x" }], addGenerationPrompt: false });
    expect(tokenizer.decoder({ showControl: true }).pushAll(ids)).toBe("<|im_start|>x<|im_end|> tail");
  });

  it("never lets a merge make a special token out of ordinary text", async () => {
    const file: { model: { vocab: Record<string, number>; merges: [string, string][] } } = JSON.parse(golden());
    const id = file.model.vocab["<|im_end|>"];
    // A hostile file: "x" + "y" merge into a token that is declared special.
    const vocab = { ...file.model.vocab, xy: Object.keys(file.model.vocab).length };
    const tokenizer = await loadTokenizer({
      kind: "tokenizer.json",
      tokenizer: changed(
        { added_tokens: [{ id: vocab.xy, content: "xy", special: true }] },
        { vocab, merges: [["x", "y"], ...file.model.merges] },
      ),
    });
    expect([...tokenizer.encode("xy")]).not.toContain(vocab.xy);
    expect([...tokenizer.encode("<|im_end|>")]).not.toContain(id);
  });
});

afterEach(() => {
  vi.unstubAllEnvs();
});

describe("files beside tokenizer.json", () => {
  it("give the template, the end tokens and the context", async () => {
    const folder = mkdtempSync(join(tmpdir(), "sluice-tokenizer-"));
    writeFileSync(join(folder, "tokenizer.json"), golden());
    const config = {
      bos_token: "<|im_start|>",
      eos_token: { content: "<|im_end|>" },
      add_bos_token: true,
      model_max_length: 4096,
      chat_template: "old",
    };
    writeFileSync(join(folder, "tokenizer_config.json"), JSON.stringify(config));
    writeFileSync(join(folder, "generation_config.json"), JSON.stringify({ eos_token_id: [5] }));
    const tokenizer = await openTokenizer(`file:${join(folder, "tokenizer.json")}`);
    expect(tokenizer.chatTemplate).toBe("old");
    expect(tokenizer.contextLength).toBe(4096);
    expect(tokenizer.prefixIds.map((id) => tokenizer.tokenText(id))).toEqual(["<|im_start|>"]);
    expect(tokenizer.vocabulary.stopIds.map((id) => tokenizer.tokenText(id)).sort()).toEqual(
      [tokenizer.tokenText(5), "<|endoftext|>", "<|im_end|>"].sort(),
    );
    writeFileSync(join(folder, "chat_template.jinja"), "new");
    expect((await openTokenizer(`file:${join(folder, "tokenizer.json")}`)).chatTemplate).toBe("new");
  });

  it("come from a hub too; those that it lacks are left out", async () => {
    const config = JSON.stringify({ chat_template: "{{ messages[0].content }}" });
    const files: Record<string, string> = { "tokenizer.json": golden(), "tokenizer_config.json": config };
    const server = createServer((request, response) => {
      const content = files[(request.url ?? "").replace("/org/repo/resolve/v1/", "")];
      if (content === undefined) response.writeHead(404).end();
      else response.end(content);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    try {
      vi.stubEnv("HF_ENDPOINT", `http://127.0.0.1:${(server.address() as AddressInfo).port}`);
      vi.stubEnv("SLUICE_HOME", mkdtempSync(join(tmpdir(), "sluice-home-")));
      const tokenizer = await openTokenizer("hf:org/repo@v1");
      expect(tokenizer.chatTemplate).toBe("{{ messages[0].content }}");
      expect([...tokenizer.encode("hello")]).toEqual([
        ...(await loadTokenizer({ kind: "tokenizer.json", tokenizer: golden() })).encode("hello"),
      ]);
    } finally {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    }
  });

  it.each(["gguf:/nowhere.gguf", "file:/nowhere/tokenizer.json", "hf:", "tokenizer.json"])(
    "%s is refused with its reason",
    async (reference) => {
      await expect(openTokenizer(reference)).rejects.toMatchObject({
        code: expect.stringMatching(/^bad_(tokenizer_file|model_reference)$/),
      });
    },
  );
});
