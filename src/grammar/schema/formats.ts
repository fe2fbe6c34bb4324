// Formats that are enforced, each as a pattern of ours that lies inside the format's definition: a grammar may leave valid
// spellings out, never let invalid ones in. A format that is not listed is an annotation, as JSON Schema has it by default.

const YEAR_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)";
const DAYS =
  "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))";
const DATE = `(?:[0-9]{4}-${DAYS}|${YEAR_LEAP}-02-29)`;
// RFC 3339 full-time without leap seconds.
const CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?";
const OFFSET = "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
const OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
// No two hyphens in a row, so that no label claims to be punycode; far below the 63 characters that a label may have, as
// each counted character is a state that the compiler must try the whole vocabulary on.
const HOST_TAIL = "(?:\\.[a-zA-Z0-9]{1,12})";
const HOST = "[a-zA-Z0-9]{1,20}(?:-[a-zA-Z0-9]{1,12})?";
const MAILBOX = "[a-zA-Z0-9_+-]";
// Where a length limit stands beside the format.
const SHORT_HOST = `[a-zA-Z0-9]{1,16}${HOST_TAIL}`;
const SEGMENT = "(?:[a-zA-Z0-9]+-)*[a-zA-Z0-9]+";
const HEX_WORD = "[0-9a-fA-F]{1,4}";
const PATH_CHARACTER = "[a-zA-Z0-9._~!$&'()*+,;=:@-]";
const QUERY_CHARACTER = "[a-zA-Z0-9._~!$&'()*+,;=:@/?-]";
const URI =
  `[a-zA-Z][a-zA-Z0-9+.-]{0,15}:(?://[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]{1,5})?(?:/${PATH_CHARACTER}*)*|` +
  `${PATH_CHARACTER}+(?:/${PATH_CHARACTER}*)*)(?:\\?${QUERY_CHARACTER}*)?(?:#${QUERY_CHARACTER}*)?`;
const RELATIVE = `(?:/?${PATH_CHARACTER.replace(":", "")}+(?:/${PATH_CHARACTER}*)*)?(?:\\?${QUERY_CHARACTER}*)?(?:#${QUERY_CHARACTER}*)?`;
const NUMBER_WITH = (unit: string) => `[0-9]{1,9}${unit}`;
const DURATION_DATE = `(?:${NUMBER_WITH("Y")}(?:${NUMBER_WITH("M")}(?:${NUMBER_WITH("D")})?)?|${NUMBER_WITH("M")}(?:${NUMBER_WITH("D")})?|${NUMBER_WITH("D")})`;
const DURATION_TIME = `T(?:${NUMBER_WITH("H")}(?:${NUMBER_WITH("M")}(?:${NUMBER_WITH("S")})?)?|${NUMBER_WITH("M")}(?:${NUMBER_WITH("S")})?|${NUMBER_WITH("S")})`;

export interface Format {
  readonly pattern: string;
  /** The same in a form of limited length, for a format beside `maxLength`. */
  readonly short?: string;
}

const URL_HOST = `${SEGMENT}(?:\\.${SEGMENT})*\\.[a-zA-Z]{2,12}`;
const SHORT_URL = `https://${SHORT_HOST}(?:/[a-zA-Z0-9._~=-]{0,24})?`;

const BODIES: Readonly<Record<string, Format>> = {
  date: { pattern: DATE },
  time: { pattern: `${CLOCK}${OFFSET}` },
  "date-time": { pattern: `${DATE}T${CLOCK}${OFFSET}` },
  "iso-time": { pattern: `${CLOCK}${OFFSET}` },
  "iso-date-time": { pattern: `${DATE}T${CLOCK}${OFFSET}` },
  duration: {
    pattern: `P(?:${DURATION_DATE}(?:${DURATION_TIME})?|${DURATION_TIME}|${NUMBER_WITH("W")})`,
  },
  email: {
    pattern: `${MAILBOX}+(?:\\.${MAILBOX}+)*@${HOST}${HOST_TAIL}{1,2}`,
    short: `${MAILBOX}{1,20}@${SHORT_HOST}`,
  },
  hostname: { pattern: `${HOST}${HOST_TAIL}{0,2}`, short: SHORT_HOST },
  ipv4: { pattern: `${OCTET}(?:\\.${OCTET}){3}` },
  ipv6: {
    pattern:
      `(?:(?:${HEX_WORD}:){7}${HEX_WORD}|${HEX_WORD}(?::${HEX_WORD}){0,5}::|` +
      `::(?:${HEX_WORD}(?::${HEX_WORD}){0,5})?|${HEX_WORD}::${HEX_WORD}(?::${HEX_WORD}){0,4})`,
  },
  uuid: { pattern: "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}" },
  uri: { pattern: URI, short: SHORT_URL },
  url: {
    pattern: `https?://${URL_HOST}(?::[0-9]{2,5})?(?:/${PATH_CHARACTER}*)*(?:\\?${QUERY_CHARACTER}*)?`,
    short: SHORT_URL,
  },
  "uri-reference": { pattern: `(?:${URI}|${RELATIVE})`, short: SHORT_URL },
  "json-pointer": { pattern: "(?:/(?:[^~/\\u0000-\\u001f]|~[01])*)*", short: "(?:/[a-zA-Z0-9_-]{1,24})?" },
  byte: {
    pattern: "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",
    short: "(?:[A-Za-z0-9+/]{4}){0,16}",
  },
};

const anchored = (body: string): string => `^(?:${body})$`;

export const FORMATS: ReadonlyMap<string, Format> = new Map(
  Object.entries(BODIES).map(([name, { pattern, short }]) => [
    name,
    { pattern: anchored(pattern), ...(short === undefined ? {} : { short: anchored(short) }) },
  ]),
);

/** Formats whose definition no pattern of ours meets: refused, so that none is dropped silently. */
export const REFUSED_FORMATS: ReadonlySet<string> = new Set([
  "idn-email",
  "idn-hostname",
  "iri",
  "iri-reference",
  "uri-template",
  "relative-json-pointer",
  "json-pointer-uri-fragment",
  "regex",
]);
