import { tokenizerFault } from "./fault.ts";
import { translatePattern } from "./oniguruma.ts";

/** What happens to the matches of a `split` stage; HF tokenizers' SplitDelimiterBehavior. */
export type SplitBehavior = "isolated" | "removed" | "mergedWithPrevious" | "mergedWithNext" | "contiguous";

/** The stages of a pre-tokenizer, in order; each cuts the pieces of the one before. */
export type PreTokenizerStage =
  | { readonly kind: "split"; readonly pattern: string; readonly behavior: SplitBehavior; readonly invert: boolean }
  | {
      readonly kind: "splitLiteral";
      readonly literal: string;
      readonly behavior: SplitBehavior;
      readonly invert: boolean;
    }
  | { readonly kind: "digits"; readonly individual: boolean }
  | { readonly kind: "byteLevel"; readonly addPrefixSpace: boolean; readonly useRegex: boolean };

export type PreTokenizer = readonly PreTokenizerStage[];

/** Cuts well-formed text into pieces that BPE never merges across. Their concatenation is the text, but for removed matches and added prefix spaces. */
export type Splitter = (text: string) => Iterable<string>;

/** The pattern inside HF's ByteLevel stage (openai/gpt-2 `encoder.py`). */
const GPT2_PATTERN = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/**
 * The same with every digit alone, in one pass. A digit ends the text as far as `\s+(?!\S)` is concerned, since the
 * `digits` stage has cut there before.
 */
const DIGITS_THEN_GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+|\\s+(?![^\\s\\p{N}])|\\s+";

const bytesOnly: PreTokenizerStage = { kind: "byteLevel", addPrefixSpace: false, useRegex: false };
const isolated = (pattern: string): PreTokenizer => [
  { kind: "split", pattern, behavior: "isolated", invert: false },
  bytesOnly,
];

const LLAMA3_PATTERN =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const QWEN2_PATTERN =
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

interface NamedPreTokenizer {
  readonly stages: PreTokenizer;
  readonly normalization: "none" | "NFC";
  readonly ignoreMerges: boolean;
}

/**
 * What a GGUF's `tokenizer.ggml.pre` name means. GGUF has no field for the normaliser and `ignore_merges`; they are
 * those of the model's own tokenizer.json.
 */
const NAMED: Readonly<Record<string, NamedPreTokenizer>> = {
  "gpt-2": named([{ kind: "byteLevel", addPrefixSpace: false, useRegex: true }]),
  smollm: named([
    { kind: "digits", individual: true },
    { kind: "byteLevel", addPrefixSpace: false, useRegex: true },
  ]),
  "llama-bpe": { stages: isolated(LLAMA3_PATTERN), normalization: "none", ignoreMerges: true },
  qwen2: { stages: isolated(QWEN2_PATTERN), normalization: "NFC", ignoreMerges: false },
};

function named(stages: PreTokenizer): NamedPreTokenizer {
  return { stages, normalization: "none", ignoreMerges: false };
}

/** Throws SluiceError `bad_tokenizer_file` for a name that is not known: guessing would give wrong tokens silently. */
export function namedPreTokenizer(name: string): NamedPreTokenizer {
  const found = Object.hasOwn(NAMED, name) ? NAMED[name] : undefined;
  if (found === undefined) {
    throw tokenizerFault(
      `pre-tokenizer "${name}" is not supported (supported: ${Object.keys(NAMED).join(", ")}); ` +
        "give the model's tokenizer.json with a file: reference instead",
    );
  }
  return found;
}

/** Compiles the stages. Throws SluiceError for patterns without a translation or a pipeline without a ByteLevel stage. */
export function compileSplitter(stages: PreTokenizer): Splitter {
  const last = stages.at(-1);
  if (last?.kind !== "byteLevel" || stages.filter((stage) => stage.kind === "byteLevel").length !== 1) {
    throw tokenizerFault("only byte-level pre-tokenizers are supported: ByteLevel must be the last stage, once");
  }
  const fused = fuse(stages);
  if (fused !== undefined) return singlePass(fused);
  const cuts = stages.map(compileStage);
  return (text) => {
    let pieces: string[] = [text];
    for (const cut of cuts) pieces = pieces.flatMap(cut);
    return pieces;
  };
}

/** One pattern whose matches tile the text, where the stages allow it. */
function fuse(stages: PreTokenizer): string | undefined {
  const [first, second] = stages;
  if (first?.kind === "byteLevel") return first.useRegex && !first.addPrefixSpace ? GPT2_PATTERN : undefined;
  if (stages.length !== 2 || second?.kind !== "byteLevel" || second.addPrefixSpace) return undefined;
  if (first?.kind === "digits" && first.individual && second.useRegex) return DIGITS_THEN_GPT2;
  return undefined;
}

function singlePass(pattern: string): Splitter {
  const expression = translatePattern(pattern);
  return (text) => text.match(expression) ?? [];
}

function compileStage(stage: PreTokenizerStage): (piece: string) => string[] {
  switch (stage.kind) {
    case "digits":
      return cutter(/\p{N}/gu, stage.individual ? "isolated" : "contiguous", false);
    case "split":
      return cutter(translatePattern(stage.pattern), stage.behavior, stage.invert);
    case "splitLiteral":
      return cutter(literalPattern(stage.literal), stage.behavior, stage.invert);
    case "byteLevel": {
      const cut = stage.useRegex
        ? cutter(translatePattern(GPT2_PATTERN), "isolated", false)
        : (piece: string) => [piece];
      return stage.addPrefixSpace ? (piece) => cut(piece.startsWith(" ") ? piece : ` ${piece}`) : cut;
    }
  }
}

/** A global pattern that matches `literal` and nothing else. */
export function literalPattern(literal: string, flags = "gu"): RegExp {
  return new RegExp(escapeLiteral(literal), flags);
}

/** `literal` as part of a larger pattern with the `u` flag. */
export function escapeLiteral(literal: string): string {
  return literal.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
}

interface Span {
  text: string;
  readonly matched: boolean;
}

function cutter(expression: RegExp, behavior: SplitBehavior, invert: boolean): (piece: string) => string[] {
  return (piece) => {
    if (behavior === "isolated" && !invert) return isolate(piece, expression);
    const spans: Span[] = [];
    let end = 0;
    for (const match of piece.matchAll(expression)) {
      if (match[0].length === 0) continue;
      if (match.index > end) spans.push({ text: piece.slice(end, match.index), matched: invert });
      spans.push({ text: match[0], matched: !invert });
      end = match.index + match[0].length;
    }
    if (end < piece.length) spans.push({ text: piece.slice(end), matched: invert });
    return combine(spans, behavior);
  };
}

function isolate(piece: string, expression: RegExp): string[] {
  const matches = piece.match(expression);
  if (matches === null) return piece.length > 0 ? [piece] : [];
  let covered = 0;
  for (const match of matches) covered += match.length;
  // The usual patterns tile the text; then the matches are the pieces.
  if (covered === piece.length) return matches;
  const pieces: string[] = [];
  let end = 0;
  for (const match of piece.matchAll(expression)) {
    pieces.push(piece.slice(end, match.index), match[0]);
    end = match.index + match[0].length;
  }
  pieces.push(piece.slice(end));
  return pieces.filter((part) => part.length > 0);
}

function combine(spans: readonly Span[], behavior: SplitBehavior): string[] {
  switch (behavior) {
    case "isolated":
      return spans.map((span) => span.text);
    case "removed":
      return spans.filter((span) => !span.matched).map((span) => span.text);
    case "contiguous":
      return gather(spans, (span, before) => span.matched === before.matched);
    case "mergedWithPrevious":
      return gather(spans, (span, before) => span.matched && !before.matched);
    case "mergedWithNext":
      return gather(spans, (span, before) => before.matched && !span.matched);
  }
}

/** Joins each span to the one before it where `joins` says so; `before` is the neighbour as it was matched. */
function gather(spans: readonly Span[], joins: (span: Span, before: Span) => boolean): string[] {
  const pieces: string[] = [];
  spans.forEach((span, index) => {
    const before = spans[index - 1];
    if (before !== undefined && joins(span, before)) pieces.push(`${pieces.pop() ?? ""}${span.text}`);
    else pieces.push(span.text);
  });
  return pieces;
}
