import { Environment } from "@huggingface/jinja";

/**
 * What chat templates may call besides Jinja itself, as HF transformers' `apply_chat_template` gives it. Own functions
 * instead of the library's: a refusal must be told apart from a fault, and the date must not depend on the locale.
 */
export function templateGlobals(refuse: (reason: unknown) => never, now: () => Date): Environment {
  const globals = new Environment();
  for (const name of ["true", "True"]) globals.set(name, true);
  for (const name of ["false", "False"]) globals.set(name, false);
  for (const name of ["none", "None"]) globals.set(name, null);
  globals.set("raise_exception", refuse);
  globals.set("range", range);
  globals.set("strftime_now", (format: string) => formatDate(now(), format));
  return globals;
}

/** No template counts further; a bound, since the numbers may come from the messages. */
const MAX_RANGE = 100_000;

function range(first: number, second?: number, step = 1): number[] {
  const [start, stop] = second === undefined ? [0, first] : [first, second];
  const length = step === 0 ? Number.NaN : Math.max(0, Math.ceil((stop - start) / step));
  if (!(length <= MAX_RANGE)) throw new RangeError(`range(${first}, ${second}, ${step}) in a chat template`);
  return Array.from({ length }, (_, index) => start + index * step);
}

const MONTHS = [
  "January",
  "February",
  "March",
  "April",
  "May",
  "June",
  "July",
  "August",
  "September",
  "October",
  "November",
  "December",
];
const DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/** The directives of Python's strftime that templates use, in UTC: gateways in different places must agree on a prompt. */
function formatDate(date: Date, format: string): string {
  const two = (value: number): string => String(value).padStart(2, "0");
  const month = MONTHS[date.getUTCMonth()] ?? "";
  const day = DAYS[date.getUTCDay()] ?? "";
  const values: Readonly<Record<string, string>> = {
    Y: String(date.getUTCFullYear()),
    y: two(date.getUTCFullYear() % 100),
    m: two(date.getUTCMonth() + 1),
    d: two(date.getUTCDate()),
    B: month,
    b: month.slice(0, 3),
    A: day,
    a: day.slice(0, 3),
    H: two(date.getUTCHours()),
    M: two(date.getUTCMinutes()),
    S: two(date.getUTCSeconds()),
    "%": "%",
  };
  return format.replace(/%([A-Za-z%])/g, (directive, letter: string) => values[letter] ?? directive);
}
