import { rm } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import type { Command } from "commander";
import { exitCode } from "./exit.ts";
import { developmentKey, writeAtomically } from "./home.ts";
import { bringModel } from "./models.ts";
import { type EngineFlags, engineArgs, integer, withEngineOptions } from "./options.ts";
import { note, print } from "./output.ts";
import { onEndRequest } from "./serve.ts";
import { modelName, threadsPerDaemon } from "./supervisor/plan.ts";
import { freePort, Supervisor } from "./supervisor/supervisor.ts";

interface UpFlags extends EngineFlags {
  readonly host: string;
  readonly port?: number;
  readonly daemons: number;
  readonly gatewayThreads: number;
  readonly model: string;
  readonly readyFile?: string;
  readonly drain: number;
}

const defaultPort = 8080;

export function addUp(program: Command, exit: (code: number) => void): void {
  const command = program
    .command("up")
    .description("Start a gateway and its daemons on embedded defaults; end with Ctrl-C")
    .option("--host <address>", "address the gateway listens on", "127.0.0.1")
    .option(
      "--port <n>",
      `port of the gateway; 0 = any free one (default: ${defaultPort}, or the next free one)`,
      integer(0, 65_535),
    )
    .option("--daemons <n>", "engine processes to start", integer(1, 64), 1)
    .option("--gateway-threads <n>", "threads of the gateway", integer(1, 64), 1)
    .option("--model <reference>", "model to serve: a known name, file:, https: or hf: reference", "smollm2")
    .option("--ready-file <path>", "write {url, key, model, pids} there once a token was produced; removed at the end")
    .option("--drain <seconds>", "how long running answers may go on after Ctrl-C", integer(0, 3_600), 30);
  withEngineOptions(command)
    .addHelpText(
      "after",
      `
Examples:
  sluice up
  sluice up --port 0 --ready-file ready.json
  sluice up --daemons 3 --threads 1
  sluice up --model file:./my-model.gguf`,
    )
    .action(async (flags: UpFlags) => exit(await up(flags)));
}

async function up(flags: UpFlags): Promise<number> {
  const ending = new AbortController();
  const asked = new Error("asked to end");
  let kill = () => {};
  onEndRequest(
    () => ending.abort(asked),
    () => {
      kill();
      process.exit(exitCode.interrupted);
    },
    // The terminal that it runs in has closed.
    ["SIGINT", "SIGTERM", "SIGHUP"],
  );
  const readyFile = flags.readyFile === undefined ? undefined : resolve(flags.readyFile);
  // One left by a killed run would tell a waiting program of servers that are gone.
  if (readyFile !== undefined) await rm(readyFile, { force: true });

  let supervisor: Supervisor | undefined;
  try {
    const modelPath = await bringModel(flags.model, ending.signal);
    const key = await developmentKey();
    const model = modelName(flags.model, modelPath);
    supervisor = new Supervisor({
      host: flags.host,
      port: await freePort(flags.host, flags.port ?? defaultPort, flags.port === undefined),
      daemons: flags.daemons,
      gatewayThreads: flags.gatewayThreads,
      model,
      modelPath,
      daemonArgs: engineArgs(flags, flags.threads ?? threadsPerDaemon(availableParallelism(), flags.daemons)),
      key,
      drainMs: flags.drain * 1_000,
      command: [process.execPath, fileURLToPath(new URL("../../bin/sluice.mjs", import.meta.url))],
      onLine: (name, line) => note(`[${name}] ${line}`),
    });
    kill = () => supervisor?.kill();
    const running = await supervisor.start(ending.signal);
    print(banner(running.url, key, model));
    if (readyFile !== undefined) {
      const ready = { url: running.url, key, model, pids: running.pids() };
      await writeAtomically(readyFile, `${JSON.stringify(ready, undefined, 2)}\n`);
    }
    await Promise.race([supervisor.lost, untilAborted(ending.signal)]);
    return exitCode.ok;
  } catch (error) {
    if (error !== asked) throw error;
    return exitCode.ok;
  } finally {
    if (ending.signal.aborted && supervisor !== undefined) {
      note("Finishing what runs; Ctrl-C again ends at once.");
    }
    if (readyFile !== undefined) await rm(readyFile, { force: true });
    await supervisor?.stop();
  }
}

function untilAborted(signal: AbortSignal): Promise<void> {
  return new Promise((done) => {
    if (signal.aborted) done();
    else signal.addEventListener("abort", () => done(), { once: true });
  });
}

/** What a newcomer copies first: an answer that is sure to match its schema. */
export function banner(url: string, key: string, model: string): string {
  const body = {
    model,
    messages: [{ role: "user", content: "Maria is 34 years old and lives in Lisbon. Describe her as JSON." }],
    response_format: {
      type: "json_schema",
      json_schema: {
        name: "person",
        strict: true,
        schema: {
          type: "object",
          properties: { name: { type: "string" }, age: { type: "integer" }, city: { type: "string" } },
          required: ["name", "age", "city"],
          additionalProperties: false,
        },
      },
    },
    temperature: 0,
    max_tokens: 128,
  };
  return `
Sluice is ready.

  URL    ${url}/v1
  key    ${key}
  model  ${model}

Try it:

curl -s ${url}/v1/chat/completions \\
  -H "authorization: Bearer ${key}" \\
  -H "content-type: application/json" \\
  -d '${JSON.stringify(body)}'

Ctrl-C ends it.
`;
}
