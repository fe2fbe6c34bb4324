// Numbers as patterns over their decimal text. Digits are bounded everywhere: an endless run of digits is as bad for a
// caller as endless white space, and JSON.parse turns a long enough one into Infinity.
import type { Bound, NumberNode } from "../schema/node.ts";

const MAX_INTEGER_DIGITS = 19;
/** Decimals of at most this many digits are all told apart by a double, so that text order is number order. */
const EXACT_DIGITS = 15;
const MAX_LISTED_MULTIPLES = 512;
const LIMIT = 10n ** BigInt(MAX_INTEGER_DIGITS) - 1n;

export const FREE_NUMBER = "-?(?:0|[1-9][0-9]{0,18})(?:\\.[0-9]{1,16})?(?:[eE][+-]?[0-9]{1,2})?";

/** A pattern for the node's texts, undefined when there are none, or the reason why it cannot be written. */
export function numberPattern(node: NumberNode): string | undefined | { readonly refused: string } {
  if (node.integer) return integerPattern(node);
  if (node.min === undefined && node.max === undefined) return FREE_NUMBER;
  return decimalPattern(node.min, node.max);
}

function floorOf(bound: Bound): bigint {
  const whole = BigInt(Math.floor(bound.value));
  return bound.exclusive && Number.isInteger(bound.value) ? whole - 1n : whole;
}

function ceilingOf(bound: Bound): bigint {
  const whole = BigInt(Math.ceil(bound.value));
  return bound.exclusive && Number.isInteger(bound.value) ? whole + 1n : whole;
}

function integerPattern(node: NumberNode): string | undefined | { readonly refused: string } {
  const { min, max, multipleOf } = node;
  const wide = [min, max].some((bound) => bound?.exclusive === true && Math.abs(bound.value) > Number.MAX_SAFE_INTEGER);
  if (wide) return { refused: "An exclusive limit beyond 2^53 is not exact in JSON numbers: use an inclusive one." };
  const low = min === undefined ? -LIMIT : ceilingOf(min);
  const high = max === undefined ? LIMIT : floorOf(max);
  const clampedLow = low < -LIMIT ? -LIMIT : low;
  const clampedHigh = high > LIMIT ? LIMIT : high;
  if (clampedLow > clampedHigh) return undefined;
  if (multipleOf === undefined) return signed(clampedLow, clampedHigh, integersBetween);
  const step = BigInt(multipleOf);
  const first = divideUp(clampedLow, step);
  const last = -divideUp(-clampedHigh, step);
  if (first > last) return undefined;
  if (last - first < BigInt(MAX_LISTED_MULTIPLES)) {
    const values: string[] = [];
    for (let factor = first; factor <= last; factor++) values.push(String(factor * step));
    return `(?:${values.join("|")})`;
  }
  const zeros = /^10*$/.exec(String(step));
  if (zeros === null) {
    return {
      refused: `\`multipleOf\` over a range with more than ${MAX_LISTED_MULTIPLES} multiples is only supported for powers of ten.`,
    };
  }
  const tail = "0".repeat(zeros[0].length - 1);
  const factors = signed(first, last, (a, b) => {
    const positive = b >= 1n ? `(?:${integersBetween(a < 1n ? 1n : a, b)})${tail}` : undefined;
    return [...(a <= 0n ? ["0"] : []), ...(positive === undefined ? [] : [positive])].join("|");
  });
  return factors;
}

function divideUp(value: bigint, step: bigint): bigint {
  const quotient = value / step;
  return value % step > 0n ? quotient + 1n : quotient;
}

/** Texts of the integers in [low, high], built from a pattern over magnitudes. */
function signed(low: bigint, high: bigint, magnitudes: (low: bigint, high: bigint) => string): string {
  const options: string[] = [];
  if (low < 0n) options.push(`-(?:${magnitudes(high < 0n ? -high : 1n, -low)})`);
  if (high >= 0n) options.push(magnitudes(low > 0n ? low : 0n, high));
  return `(?:${options.join("|")})`;
}

/** Decimal texts without leading zeros of the integers in [low, high], 0 <= low <= high. */
export function integersBetween(low: bigint, high: bigint): string {
  const options: string[] = [];
  // Lengths of which every number is in: one loop says them all.
  let whole: { readonly from: number; to: number } | undefined;
  for (let length = String(low).length; length <= String(high).length; length++) {
    const smallest = length === 1 ? 0n : 10n ** BigInt(length - 1);
    const largest = 10n ** BigInt(length) - 1n;
    if (length > 1 && low <= smallest && high >= largest) {
      if (whole === undefined) whole = { from: length, to: length };
      else whole.to = length;
      continue;
    }
    const from = String(low > smallest ? low : smallest);
    const to = String(high < largest ? high : largest);
    options.push(sameLength(from, to));
  }
  if (whole !== undefined) options.push(`[1-9][0-9]{${whole.from - 1},${whole.to - 1}}`);
  return options.join("|");
}

function digits(from: number, to: number): string {
  return from === to ? String(from) : `[${from}-${to}]`;
}

function anyDigits(count: number): string {
  return count === 0 ? "" : count === 1 ? "[0-9]" : `[0-9]{${count}}`;
}

function sameLength(from: string, to: string): string {
  if (from === "" || from === to) return from;
  const [a, b] = [Number(from[0]), Number(to[0])];
  const rest = from.length - 1;
  if (a === b) return `${a}(?:${sameLength(from.slice(1), to.slice(1))})`;
  const lowestRest = "0".repeat(rest);
  const highestRest = "9".repeat(rest);
  const options: string[] = [];
  let [first, last] = [a, b];
  if (from.slice(1) !== lowestRest) {
    options.push(`${a}(?:${sameLength(from.slice(1), highestRest)})`);
    first++;
  }
  if (to.slice(1) !== highestRest) {
    options.push(`${b}(?:${sameLength(lowestRest, to.slice(1))})`);
    last--;
  }
  if (first <= last) options.push(`${digits(first, last)}${anyDigits(rest)}`);
  return options.join("|");
}

interface Decimal {
  readonly whole: bigint;
  /** Digits after the point, without trailing zeros. */
  readonly fraction: string;
  readonly exclusive: boolean;
}

/** A bound of at least 0 as exact decimal digits. */
function decimalOf(value: number, exclusive: boolean): Decimal {
  const [mantissa = "0", exponentText = "0"] = String(value).split("e");
  const exponent = Number(exponentText);
  const [whole = "0", fraction = ""] = mantissa.split(".");
  const padded = exponent >= 0 ? fraction.padEnd(exponent, "0") : fraction;
  const wholeDigits =
    exponent >= 0 ? whole + padded.slice(0, exponent) : whole.slice(0, Math.max(0, whole.length + exponent));
  const fractionDigits =
    exponent >= 0
      ? padded.slice(exponent)
      : whole.slice(Math.max(0, whole.length + exponent)).padStart(-exponent, "0") + fraction;
  return {
    whole: BigInt(wholeDigits === "" ? "0" : wholeDigits),
    fraction: fractionDigits.replace(/0+$/, ""),
    exclusive,
  };
}

function decimalPattern(
  min: Bound | undefined,
  max: Bound | undefined,
): string | undefined | { readonly refused: string } {
  const size = Math.max(Math.abs(min?.value ?? 0), Math.abs(max?.value ?? 0));
  if (size >= 1e15) return { refused: "A limit of 1e15 or more on a number is not supported: use an integer." };
  const inexact = [min, max].some(
    (bound) =>
      bound?.exclusive === true &&
      String(Math.abs(bound.value)).replace(/[.]/, "").replace(/e.*$/, "").length > EXACT_DIGITS,
  );
  if (inexact) return { refused: "An exclusive limit of more than 15 digits is not exact in JSON numbers." };
  const options: string[] = [];
  if (min === undefined || min.value < 0) {
    // Magnitudes of the negative numbers: the limits change sides.
    const low = max !== undefined && max.value < 0 ? decimalOf(-max.value, max.exclusive) : decimalOf(0, true);
    const high = min === undefined ? undefined : decimalOf(-min.value, min.exclusive);
    const pattern = magnitudesBetween(low, high);
    if (pattern !== undefined) options.push(`-(?:${pattern})`);
  }
  if (max === undefined || max.value >= 0) {
    const low = min !== undefined && min.value >= 0 ? decimalOf(min.value, min.exclusive) : decimalOf(0, false);
    const high = max === undefined ? undefined : decimalOf(max.value, max.exclusive);
    const pattern = magnitudesBetween(low, high);
    if (pattern !== undefined) options.push(pattern);
  }
  return options.length === 0 ? undefined : `(?:${options.join("|")})`;
}

function magnitudesBetween(low: Decimal, high: Decimal | undefined): string | undefined {
  const wholeDigits = Math.max(String(low.whole).length, high === undefined ? 1 : String(high.whole).length);
  const places = Math.max(1, EXACT_DIGITS - wholeDigits, low.fraction.length + 1, (high?.fraction.length ?? 0) + 1);
  const largest = high?.whole ?? 10n ** BigInt(EXACT_DIGITS) - 1n;
  const options: string[] = [];
  const edge = (whole: bigint, from: Decimal | undefined, to: Decimal | undefined) => {
    const fraction = fractionsBetween(from, to, places);
    if (fraction !== undefined) options.push(`${whole}${fraction}`);
  };
  if (high !== undefined && low.whole === high.whole) edge(low.whole, low, high);
  else {
    edge(low.whole, low, undefined);
    const last = high === undefined ? largest : high.whole - 1n;
    if (low.whole + 1n <= last) options.push(`(?:${integersBetween(low.whole + 1n, last)})(?:\\.[0-9]{1,${places}})?`);
    if (high !== undefined) edge(high.whole, undefined, high);
  }
  return options.length === 0 ? undefined : options.join("|");
}

/** What may follow the whole part so that the fraction lies between the two, each undefined = no limit on that side. */
function fractionsBetween(low: Decimal | undefined, high: Decimal | undefined, places: number): string | undefined {
  const mayEnd = (at: number, tightLow: boolean, tightHigh: boolean) =>
    !(tightLow && low !== undefined && (at < low.fraction.length || low.exclusive)) &&
    !(tightHigh && high !== undefined && at >= high.fraction.length && high.exclusive);

  const more = (at: number, tightLow: boolean, tightHigh: boolean): string[] => {
    if (at >= places) return [];
    if (!tightLow && !tightHigh) return [`[0-9]{1,${places - at}}`];
    // Every digit of the upper limit is used up: only zeros could follow.
    if (tightHigh && high !== undefined && at >= high.fraction.length) return [];
    if (tightLow && low !== undefined && at >= low.fraction.length && !tightHigh) {
      const left = places - at;
      return low.exclusive
        ? [`0{0,${Math.min(3, left - 1)}}[1-9][0-9]{0,${Math.max(0, left - 4)}}`]
        : [`[0-9]{1,${left}}`];
    }
    const lowest = tightLow ? Number(low?.fraction[at] ?? "0") : 0;
    const highest = tightHigh ? Number(high?.fraction[at] ?? "0") : 9;
    const options: string[] = [];
    const step = (from: number, to: number, stillLow: boolean, stillHigh: boolean) => {
      if (from > to) return;
      const rest = more(at + 1, stillLow, stillHigh);
      const end = mayEnd(at + 1, stillLow, stillHigh);
      if (rest.length === 0 && !end) return;
      options.push(`${digits(from, to)}${rest.length === 0 ? "" : `(?:${rest.join("|")})${end ? "?" : ""}`}`);
    };
    if (lowest === highest) step(lowest, lowest, tightLow, tightHigh);
    else {
      if (tightLow) step(lowest, lowest, true, false);
      step(tightLow ? lowest + 1 : lowest, tightHigh ? highest - 1 : highest, false, false);
      if (tightHigh) step(highest, highest, false, true);
    }
    return options;
  };
  const end = mayEnd(0, low !== undefined, high !== undefined);
  const fractions = more(0, low !== undefined, high !== undefined);
  if (fractions.length === 0) return end ? "" : undefined;
  return `(?:\\.(?:${fractions.join("|")}))${end ? "?" : ""}`;
}
