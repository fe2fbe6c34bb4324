import { setTimeout as delay } from "node:timers/promises";
import { exitCode } from "./exit.ts";
import { note, tell } from "./output.ts";
import { isSupervised, tellSupervisor, toChild } from "./supervisor/messages.ts";

export interface Served {
  readonly url: string;
  /** Stops accepting, lets what runs finish within its own bound, frees everything. */
  close(): Promise<void>;
}

/** Two signals closer than this are one Ctrl-C: npm and the launcher each pass on what the terminal sends to all. */
const sameKeystrokeMs = 500;

/** SIGHUP is not among them: it makes a gateway read its configuration again. */
const endSignals: readonly NodeJS.Signals[] = ["SIGINT", "SIGTERM"];

/**
 * Calls `first` for the first request to end and `again` for each later one that a person must have made.
 * Covers signals, a terminal that closes, and the death of the launcher.
 */
export function onEndRequest(first: () => void, again: () => void, signals = endSignals): void {
  let firstAt: number | undefined;
  const request = () => {
    if (firstAt === undefined) {
      firstAt = performance.now();
      first();
    } else if (performance.now() - firstAt > sameKeystrokeMs) again();
  };
  for (const signal of signals) process.on(signal, request);
  if (process.send !== undefined) {
    process.once("disconnect", () => {
      if (firstAt === undefined) request();
    });
  }
}

/**
 * The life of a server process, alone in a terminal or under `sluice up`: start, tell where it listens, drain when asked,
 * exit. Never returns.
 */
export async function serve(start: () => Promise<Served>, verbose: boolean, drainMs = 30_000): Promise<never> {
  let served: Served | undefined;
  let ending = false;
  const end = async (boundMs: number) => {
    if (ending) return;
    ending = true;
    // Nothing to drain before the start is done; the operating system takes back the rest.
    if (served === undefined) process.exit(exitCode.ok);
    const closed = served.close().then(() => true);
    const inTime = await Promise.race([closed, delay(boundMs + 3_000, false, { ref: false })]);
    process.exit(inTime ? exitCode.ok : exitCode.failure);
  };
  const endOrTell = (boundMs: number) => {
    end(boundMs).catch((error) => process.exit(tell(error, verbose)));
  };

  if (isSupervised()) {
    // A terminal sends Ctrl-C to every process; the order of ending is the supervisor's.
    process.on("SIGINT", () => {});
    process.on("SIGTERM", () => endOrTell(drainMs));
    process.on("message", (raw) => {
      const message = toChild.safeParse(raw);
      if (message.success) endOrTell(message.data.drainMs);
    });
    // Nobody is left to talk to and nobody would end us later.
    process.once("disconnect", () => process.exit(exitCode.failure));
  } else {
    onEndRequest(
      () => {
        note("Finishing what runs; Ctrl-C again ends at once.");
        endOrTell(drainMs);
      },
      () => process.exit(exitCode.interrupted),
    );
  }

  try {
    served = await start();
  } catch (error) {
    const code = tell(error, verbose);
    const message = error instanceof Error ? error.message : String(error);
    tellSupervisor({ type: "refused", message, exitCode: code });
    process.exit(code);
  }
  tellSupervisor({ type: "ready", url: served.url });
  if (!isSupervised()) note(`Listening on ${served.url}`);
  return await new Promise<never>(() => {});
}
