import { parseArgs } from "node:util";
import { startDaemon } from "../../src/backends/daemon/start.ts";

/** A daemon process around the native engine, for tests that kill one. Prints its URL as the only line of output. */
const { values } = parseArgs({ options: { model: { type: "string", default: "" } } });
const daemon = await startDaemon({
  model: values.model,
  port: 0,
  precision: "fast",
  threads: 1,
  kvTokens: 4096,
  maxRows: 8,
});
process.stdout.write(`${daemon.url}\n`);
