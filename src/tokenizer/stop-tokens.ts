/**
 * Texts of control tokens that end a turn in published models. Files name at most one end token, while instruction-tuned
 * models end turns with one token and documents with another; an answer that ran past either would not stop.
 * Matched against control tokens only, so no ordinary word can end an answer.
 */
const END_OF_TURN: ReadonlySet<string> = new Set([
  "<|im_end|>",
  "<|endoftext|>",
  "<|eot_id|>",
  "<|eom_id|>",
  "<|end_of_text|>",
  "<|end|>",
  "<|return|>",
  "<|call|>",
  "<|end_of_turn|>",
  "<end_of_turn>",
  "<|eot|>",
  "<EOT>",
  "</s>",
  "<｜end▁of▁sentence｜>",
]);

export function endsTurn(controlTokenText: string): boolean {
  return END_OF_TURN.has(controlTokenText);
}
