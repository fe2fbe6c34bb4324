import { readFileSync } from "node:fs";
import { Command, CommanderError } from "commander";
import { addConfig } from "./config.ts";
import { addDaemon } from "./daemon.ts";
import { addDoctor } from "./doctor.ts";
import { type ExitCode, exitCode } from "./exit.ts";
import { addGateway } from "./gateway.ts";
import { addGenerate } from "./generate.ts";
import { addModel } from "./model.ts";
import { note, tell } from "./output.ts";
import { addUp } from "./up.ts";

const description = `Sluice: an edge gateway for LLM inference, from an HTTPS call to a JSON-schema answer.

Start with \`sluice up\`: a gateway and an engine with a small real model on this machine.`;

const footer = `
State lives in SLUICE_HOME, else in a clone's .sluice, else in the XDG folders. Exit codes: 0 done, 1 failed, 64 wrong command line,
65 bad input (configuration, schema, model file), 69 something needed is missing, 130 ended by a second Ctrl-C.`;

function version(): string {
  const file: unknown = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8"));
  return typeof file === "object" && file !== null && "version" in file ? String(file.version) : "unknown";
}

/** The `sluice` command. Resolves with the exit code; prints every failure itself. */
export async function main(args: readonly string[]): Promise<number> {
  let code: number = exitCode.ok;
  const exit = (given: number) => {
    code = given;
  };
  const program = new Command("sluice")
    .description(description)
    .version(version())
    .option("--verbose", "show stack traces of failures")
    .showHelpAfterError("Run with --help for the options.")
    .addHelpText("after", footer)
    .exitOverride();
  addUp(program, exit);
  addGateway(program);
  addDaemon(program);
  addGenerate(program, exit);
  addModel(program);
  addConfig(program, exit);
  addDoctor(program, exit);
  for (const command of program.commands) inheritExit(command);

  try {
    if (args.length === 0) program.help({ error: true });
    await program.parseAsync([...args], { from: "user" });
    return code;
  } catch (error) {
    if (error instanceof CommanderError) return commanderExit(error);
    return tell(error, program.opts().verbose === true || args.includes("--verbose"));
  }
}

/** Commander ends the process by itself unless each command is told not to. */
function inheritExit(command: Command): void {
  command.exitOverride();
  for (const sub of command.commands) inheritExit(sub);
}

/** Help and version are no failures; everything else it throws is about the command line. */
function commanderExit(error: CommanderError): ExitCode {
  if (error.exitCode === 0) return exitCode.ok;
  if (error.message !== "" && !error.code.startsWith("commander.")) note(error.message);
  return exitCode.usage;
}
