/** Exit codes of the command (docs/cli.md); the numbers above 63 are those of sysexits.h. */
export const exitCode = {
  ok: 0,
  /** Something failed while running. */
  failure: 1,
  /** The command line itself is wrong. */
  usage: 64,
  /** Input was read but is no good: a bad configuration, schema or model file. */
  input: 65,
  /** A needed file, model or service is not there. */
  unavailable: 69,
  /** Ended by a second Ctrl-C. */
  interrupted: 130,
} as const;
export type ExitCode = (typeof exitCode)[keyof typeof exitCode];

/** A fault that is told in one plain message; a stack trace would help nobody. */
export class CommandError extends Error {
  override readonly name = "CommandError";
  readonly exitCode: ExitCode;
  constructor(message: string, code: ExitCode = exitCode.failure, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.exitCode = code;
  }
}
