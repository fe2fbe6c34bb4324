import { serveDaemon } from "../../src/backends/daemon/server.ts";
import { grammarTokenBytes } from "../../src/grammar/vocabulary.ts";
import { openTokenizer } from "../../src/tokenizer/node.ts";
import { pacedEngine } from "./paced-engine.ts";
import { answerOf } from "./workload.ts";

/** The real daemon around an engine that costs nothing. A process of its own; told by message whether to pace. `node token-upstream.ts TOKENIZER` */
const tokenizer = await openTokenizer(process.argv[2] ?? "");
const { vocabulary, fingerprint } = tokenizer;
const pace = { paced: false };
const daemon = await serveDaemon(
  { model: "bench", port: 0, precision: "exact", threads: 1, kvTokens: 1 << 20, maxRows: 1024, maxQueued: 1024 },
  {
    createEngine: pacedEngine(answerOf(tokenizer).ids, pace),
    openVocabulary: async () => ({
      tokens: Array.from({ length: vocabulary.size }, (_, id) => grammarTokenBytes(vocabulary, id)),
      stopIds: vocabulary.stopIds,
      vocabularyHash: vocabulary.vocabularyHash,
      tokenizerFingerprint: fingerprint,
    }),
  },
);
process.on("message", (told: { readonly paced: boolean }) => {
  pace.paced = told.paced;
  process.send?.({ ok: true });
});
process.once("disconnect", () => process.exit());
process.send?.({ url: daemon.url });
