import cliProgress from "cli-progress";
import { SluiceError } from "../errors.ts";
import { CommandError, type ExitCode, exitCode } from "./exit.ts";

/** The one file through which the command talks to its terminal: results on stdout, everything else on stderr. */

export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

export function note(text: string): void {
  process.stderr.write(`${text}\n`);
}

export interface Progress {
  /** 0 to 1. */
  update(fraction: number, detail?: string): void;
  end(): void;
}

/** What is done before this needs no lines in a log. */
const quietMs = 1_000;

/** A bar on a terminal; elsewhere (logs, CI) a line every tenth of longer work, so that a log stays readable. */
export function progress(label: string): Progress {
  if (process.stderr.isTTY) {
    const bar = new cliProgress.SingleBar(
      { format: `  ${label} [{bar}] {percentage} % {detail}`, barsize: 28, clearOnComplete: true, hideCursor: null },
      cliProgress.Presets.legacy,
    );
    let started = false;
    return {
      update(fraction, detail = "") {
        if (!started) bar.start(1000, 0, { detail });
        started = true;
        bar.update(Math.round(fraction * 1000), { detail });
      },
      end() {
        if (started) bar.stop();
      },
    };
  }
  const started = performance.now();
  let tenth = -1;
  return {
    update(fraction, detail = "") {
      const now = Math.floor(Math.min(1, fraction) * 10);
      if (now <= tenth || performance.now() - started < quietMs) return;
      tenth = now;
      note(`  ${label} ${now * 10} % ${detail}`.trimEnd());
    },
    end() {},
  };
}

/** Columns aligned for reading. */
export function table(rows: ReadonlyArray<readonly string[]>): string {
  const widths: number[] = [];
  for (const row of rows) {
    row.forEach((cell, column) => {
      widths[column] = Math.max(widths[column] ?? 0, cell.length);
    });
  }
  return rows
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

/** Where an error's own code says more than its HTTP status. */
const exitCodes: Readonly<Record<string, ExitCode>> = {
  invalid_config: exitCode.input,
  bad_model_reference: exitCode.usage,
  bad_tokenizer_file: exitCode.input,
  model_checksum_mismatch: exitCode.input,
  model_not_found: exitCode.unavailable,
  model_access_denied: exitCode.unavailable,
  model_source_failed: exitCode.unavailable,
  port_taken: exitCode.unavailable,
  cannot_listen: exitCode.unavailable,
  pool_key_required: exitCode.usage,
};

/** Tells a failure in plain words and returns the exit code. Stack traces only when asked for. */
export function tell(error: unknown, verbose: boolean): ExitCode {
  if (error instanceof CommandError) {
    note(`sluice: ${error.message}`);
    if (verbose && error.cause !== undefined) note(inspectCause(error.cause));
    return error.exitCode;
  }
  if (error instanceof SluiceError) {
    const { message, param } = error;
    note(`sluice: ${message}${param === undefined || message.includes(param) ? "" : ` (at ${param})`}`);
    if (verbose) note(inspectCause(error));
    return exitCodes[error.code] ?? (error.status === 400 ? exitCode.input : exitCode.failure);
  }
  note(`sluice: ${error instanceof Error ? error.message : String(error)}`);
  note(verbose ? inspectCause(error) : "Run with --verbose for the whole trace.");
  return exitCode.failure;
}

function inspectCause(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const own = error.stack ?? error.message;
  return error.cause === undefined ? own : `${own}\nCaused by: ${inspectCause(error.cause)}`;
}
