import { parseArgs } from "node:util";
import { serveDaemon } from "../../src/backends/daemon/server.ts";
import { hashEngineParts } from "./hash-engine.ts";

/** A daemon process around the hash engine, for tests that kill one. Prints its URL as the only line of output. */
const { values } = parseArgs({
  options: { "step-ms": { type: "string", default: "0" }, "step-tokens": { type: "string", default: "512" } },
});
const daemon = await serveDaemon(
  {
    model: "hash",
    port: 0,
    precision: "exact",
    threads: 1,
    kvTokens: 16_384,
    maxRows: 8,
    maxStepTokens: Number(values["step-tokens"]),
  },
  hashEngineParts({ stepMs: Number(values["step-ms"]) }),
);
process.stdout.write(`${daemon.url}\n`);
