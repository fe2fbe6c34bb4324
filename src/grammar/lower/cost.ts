// What a pattern costs to compile and to match, estimated before any of it happens.
import { type Range, type Regex, stateEstimate } from "../regex/ast.ts";

const MAX_COUNT_AFTER_LOOP = 40;

/** States of the automaton that accept much of the vocabulary. */
export function wideStates(regex: Regex): number {
  switch (regex.kind) {
    case "set":
      return setCost(regex.ranges);
    case "sequence":
      return regex.parts.reduce((sum, part) => sum + wideStates(part), 0);
    case "choice":
      return regex.options.reduce((sum, option) => sum + wideStates(option), 0);
    case "repeat":
      return wideStates(regex.of) * (regex.max === Infinity ? regex.min + 1 : regex.max);
  }
}

/** A loop and then a long count: every turn of the loop may be where the count began. */
export function keepsManyThreads(regex: Regex): boolean {
  switch (regex.kind) {
    case "set":
      return false;
    case "choice":
      return regex.options.some(keepsManyThreads);
    case "repeat":
      return keepsManyThreads(regex.of);
    case "sequence": {
      const loop = regex.parts.findIndex((part) => part.kind === "repeat" && part.max === Infinity);
      const counted = (part: Regex) =>
        part.kind === "repeat" && part.max !== Infinity && stateEstimate(part) > MAX_COUNT_AFTER_LOOP;
      return regex.parts.some(keepsManyThreads) || (loop >= 0 && regex.parts.slice(loop).some(counted));
    }
  }
}

/** Letters are where tokens are: a state that takes them keeps a large part of the vocabulary. */
function setCost(ranges: readonly Range[]): number {
  const size = ranges.reduce((sum, [low, high]) => sum + high - low + 1, 0);
  return size > 200 ? 1 : size > 20 ? 0.5 : 0.05;
}
