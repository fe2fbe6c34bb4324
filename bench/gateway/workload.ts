import { createHash } from "node:crypto";
import type { Tokenizer } from "../../src/tokenizer/index.ts";

/** What every gateway is asked and every upstream answers: one prompt size, one answer, token for token the same. */

export const tokensInAnswer = 50;
/** One step of an engine: each running answer gets one token. */
export const stepMs = 5;
export const modelName = "bench";
export const apiKey = "sk-bench-gateway";
export const apiKeyHash = `sha256:${createHash("sha256").update(apiKey).digest("hex")}`;

const prose =
  "A gateway is judged on its worst day: a backend falls silent, a socket breaks in the middle of a word, a limit is " +
  "reached, a queue runs full. What the caller then sees should be either the whole answer, unchanged and sent once, " +
  "or one clear error that says what happened and whether trying it again can help anyone at all, today or tomorrow.";

export interface Answer {
  readonly ids: readonly number[];
  /** One for each id. */
  readonly pieces: readonly string[];
}

export function answerOf(tokenizer: Tokenizer): Answer {
  const ids = Array.from(tokenizer.encode(prose)).slice(0, tokensInAnswer);
  const decoder = tokenizer.decoder();
  const pieces = ids.map((id) => decoder.push(id));
  if (ids.length < tokensInAnswer || pieces.includes("")) {
    throw new Error("this tokenizer does not cut the answer into fifty whole pieces");
  }
  return { ids, pieces };
}

const system =
  "You are the assistant of a railway. You answer in short sentences, name times in the traveller's own zone, never " +
  "promise a connection that leaves less than six minutes to change, and say so when you do not know. Prices are in " +
  "euros and hold for one adult in second class without a discount card unless the traveller says otherwise.";
const history =
  "From Vienna there is a train at 08:42 that reaches Venice at 16:05 with one change in Villach, where you have " +
  "eleven minutes. The next one leaves at 12:42 and needs half an hour longer.";

/** About 0.9 kB. The last turn differs from request to request, as in a conversation that grows. */
export function requestBody(stream: boolean, turn: number): string {
  const user = `Thank you. And request ${turn}: is there one in the evening that gets me there before midnight?`;
  return JSON.stringify({
    model: modelName,
    messages: [
      { role: "system", content: system },
      { role: "user", content: "How do I get from Vienna to Venice on Tuesday?" },
      { role: "assistant", content: history },
      { role: "user", content: user },
    ],
    max_tokens: tokensInAnswer,
    temperature: 0,
    ...(stream && { stream: true }),
  });
}
