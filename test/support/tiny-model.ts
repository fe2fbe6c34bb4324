import { copyFile, mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const golden = fileURLToPath(new URL("../../native/tests/goldens/llama-gqa-tied", import.meta.url));

/** ASCII without the five that neither JSON nor English needs: one token each, behind three special ones. */
const characters = Array.from({ length: 95 }, (_, index) => String.fromCharCode(0x20 + index)).filter(
  (character) => !"`^~|@".includes(character),
);

/**
 * A folder with a tiny random Llama and a tokenizer of its 93 tokens: the real engine at thousands of tokens a second. What
 * it says is noise, the same each time.
 */
export async function tinyModel(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), "sluice-tiny-"));
  for (const file of ["config.json", "model.safetensors"]) await copyFile(join(golden, file), join(folder, file));
  const special = ["<pad>", "<s>", "</s>"];
  const tokenizer = {
    version: "1.0",
    added_tokens: special.map((content, id) => ({ id, content, special: true })),
    normalizer: null,
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    decoder: { type: "ByteLevel" },
    model: {
      type: "BPE",
      // GPT-2's alphabet shows a space as U+0120 and the rest of ASCII as itself.
      vocab: Object.fromEntries(characters.map((text, index) => [text === " " ? "\u0120" : text, 3 + index])),
      merges: [],
    },
  };
  await writeFile(join(folder, "tokenizer.json"), JSON.stringify(tokenizer));
  const template = "{% for message in messages %}{{ message.role }}: {{ message.content }} {% endfor %}assistant:";
  await writeFile(
    join(folder, "tokenizer_config.json"),
    JSON.stringify({ chat_template: template, eos_token: "</s>" }),
  );
  return folder;
}
