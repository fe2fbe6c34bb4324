/** One line of JSON for each event. Values that may hold a prompt, an answer or a key are never printed. */
export type LogFields = Readonly<Record<string, string | number | boolean | undefined | readonly string[]>>;

export interface Logger {
  info(event: string, fields?: LogFields): void;
  warn(event: string, fields?: LogFields): void;
  error(event: string, fields?: LogFields): void;
}

const secret =
  /^(authorization|cookie|.*(api_?key|secret|password)|key|prompt|messages|content|completion|arguments)$/i;

export interface LoggerOptions {
  /** Takes one line, its line end included. */
  readonly write: (line: string) => void;
  /** Milliseconds since 1970. */
  readonly wall: () => number;
  /** `telemetry.content`: the operator wants prompts and answers in the log. Keys stay out even then. */
  readonly content?: boolean;
  /** In every line. */
  readonly fields?: LogFields | undefined;
}

const isContent = (name: string): boolean => /^(prompt|messages|content|completion|arguments)$/i.test(name);

export function createLogger(options: LoggerOptions): Logger {
  const line = (level: string, event: string, fields: LogFields | undefined): void => {
    const record: Record<string, unknown> = { time: new Date(options.wall()).toISOString(), level, event };
    for (const [name, value] of Object.entries({ ...options.fields, ...fields })) {
      const hidden = secret.test(name) && !(options.content === true && isContent(name));
      if (value !== undefined) record[name] = hidden ? "[redacted]" : value;
    }
    options.write(`${JSON.stringify(record)}\n`);
  };
  return {
    info: (event, fields) => line("info", event, fields),
    warn: (event, fields) => line("warn", event, fields),
    error: (event, fields) => line("error", event, fields),
  };
}
