/** An inclusive range of Unicode scalar values. */
export type Range = readonly [number, number];

/** A regular language over Unicode scalar values (never lone surrogates), matched from end to end. */
export type Regex =
  | { readonly kind: "set"; readonly ranges: readonly Range[] }
  | { readonly kind: "sequence"; readonly parts: readonly Regex[] }
  | { readonly kind: "choice"; readonly options: readonly Regex[] }
  | { readonly kind: "repeat"; readonly of: Regex; readonly min: number; readonly max: number };

const MAX_CODE_POINT = 0x10ffff;

/** Sorts, merges, and cuts out the surrogates, which no UTF-8 text can hold. */
export function normalizeRanges(ranges: readonly Range[]): Range[] {
  const pieces: Array<[number, number]> = [];
  for (const [low, high] of ranges) {
    if (low <= Math.min(high, 0xd7ff)) pieces.push([low, Math.min(high, 0xd7ff)]);
    if (Math.max(low, 0xe000) <= high) pieces.push([Math.max(low, 0xe000), high]);
  }
  pieces.sort((a, b) => a[0] - b[0]);
  const merged: Array<[number, number]> = [];
  for (const [low, high] of pieces) {
    const last = merged.at(-1);
    if (last !== undefined && low <= last[1] + 1) last[1] = Math.max(last[1], high);
    else merged.push([low, high]);
  }
  return merged;
}

export function complementRanges(ranges: readonly Range[]): Range[] {
  const gaps: Range[] = [];
  let next = 0;
  for (const [low, high] of normalizeRanges(ranges)) {
    if (low > next) gaps.push([next, low - 1]);
    next = high + 1;
  }
  if (next <= MAX_CODE_POINT) gaps.push([next, MAX_CODE_POINT]);
  return normalizeRanges(gaps);
}

export function contains(ranges: readonly Range[], codePoint: number): boolean {
  return ranges.some(([low, high]) => low <= codePoint && codePoint <= high);
}

export const ANY_CHARACTER: Regex = { kind: "set", ranges: normalizeRanges([[0, MAX_CODE_POINT]]) };
export const EMPTY: Regex = { kind: "sequence", parts: [] };

export function isEveryCharacter(regex: Regex): boolean {
  return regex.kind === "set" && complementRanges(regex.ranges).length === 0;
}

/** The language without any text; `sequence`, `choice` and `repeat` keep it out of larger expressions. */
export const NOTHING: Regex = { kind: "set", ranges: [] };

export function isNothing(regex: Regex): boolean {
  return regex.kind === "set" && regex.ranges.length === 0;
}

export function sequence(parts: readonly Regex[]): Regex {
  if (parts.some(isNothing)) return NOTHING;
  const flat = parts.flatMap((part) => (part.kind === "sequence" ? part.parts : [part]));
  const only = flat[0];
  return flat.length === 1 && only !== undefined ? only : { kind: "sequence", parts: flat };
}

export function choice(options: readonly Regex[]): Regex {
  const flat = options
    .flatMap((option) => (option.kind === "choice" ? option.options : [option]))
    .filter((option) => !isNothing(option));
  if (flat.length === 0) return NOTHING;
  if (flat.length > 1 && flat.every((option) => option.kind === "set")) {
    return {
      kind: "set",
      ranges: normalizeRanges(flat.flatMap((option) => (option.kind === "set" ? option.ranges : []))),
    };
  }
  const only = flat[0];
  return flat.length === 1 && only !== undefined ? only : { kind: "choice", options: flat };
}

export function repeat(of: Regex, min: number, max: number): Regex {
  if (isNothing(of)) return min === 0 ? EMPTY : NOTHING;
  if (max === 0 || (of.kind === "sequence" && of.parts.length === 0)) return EMPTY;
  return min === 1 && max === 1 ? of : { kind: "repeat", of, min, max };
}

/** A regex that matches this text and nothing else. */
export function literal(text: string): Regex {
  return sequence(
    Array.from(text, (character): Regex => {
      const code = character.codePointAt(0) ?? 0;
      return { kind: "set", ranges: [[code, code]] };
    }),
  );
}

/** Shortest and longest match in code points; an empty language gives [Infinity, -Infinity]. */
export function lengths(regex: Regex): readonly [number, number] {
  switch (regex.kind) {
    case "set":
      return regex.ranges.length === 0 ? [Infinity, -Infinity] : [1, 1];
    case "sequence":
      return regex.parts.reduce<readonly [number, number]>(
        ([min, max], part) => {
          const [low, high] = lengths(part);
          return [min + low, max + high];
        },
        [0, 0],
      );
    case "choice":
      return regex.options.reduce<readonly [number, number]>(
        ([min, max], option) => {
          const [low, high] = lengths(option);
          return [Math.min(min, low), Math.max(max, high)];
        },
        [Infinity, -Infinity],
      );
    case "repeat": {
      const [low, high] = lengths(regex.of);
      return [low * regex.min, high === 0 ? 0 : high * regex.max];
    }
  }
}

/**
 * The same language cut to lengths in [min, max], or undefined where this simple rewriting cannot say it: only one part
 * of a sequence may vary in length, and it must repeat something of fixed length.
 */
export function withLength(regex: Regex, min: number, max: number): Regex | undefined {
  const [low, high] = lengths(regex);
  if (low >= min && high <= max) return regex;
  if (regex.kind === "choice") {
    const options: Regex[] = [];
    for (const option of regex.options) {
      const [optionLow, optionHigh] = lengths(option);
      if (optionLow > max || optionHigh < min) continue;
      const cut = withLength(option, min, max);
      if (cut === undefined) return undefined;
      options.push(cut);
    }
    return choice(options);
  }
  const parts = regex.kind === "sequence" ? regex.parts : [regex];
  const varying = parts.filter((part) => {
    const [partLow, partHigh] = lengths(part);
    return partLow !== partHigh;
  });
  const [only] = varying;
  if (only === undefined) return NOTHING;
  if (varying.length > 1 || only.kind !== "repeat") return undefined;
  const [unit, unitHigh] = lengths(only.of);
  if (unit !== unitHigh || unit === 0) return undefined;
  const fixed = low - unit * only.min;
  const from = Math.max(only.min, Math.ceil((min - fixed) / unit));
  const to = Math.min(only.max, Math.floor((max - fixed) / unit));
  if (to < from) return NOTHING;
  return sequence(parts.map((part) => (part === only ? repeat(only.of, from, to) : part)));
}

/** States that an unrolled automaton of this regex needs, roughly; counted repetition multiplies. */
export function stateEstimate(regex: Regex): number {
  switch (regex.kind) {
    case "set":
      return 1;
    case "sequence":
      return regex.parts.reduce((sum, part) => sum + stateEstimate(part), 0);
    case "choice":
      return regex.options.reduce((sum, option) => sum + stateEstimate(option), 1);
    case "repeat":
      return stateEstimate(regex.of) * (regex.max === Infinity ? Math.max(1, regex.min + 1) : regex.max);
  }
}
