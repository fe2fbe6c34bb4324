import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, readFileSync } from "node:fs";
import { readdir, readFile, readlink } from "node:fs/promises";
import { createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { request } from "undici";

/** A `sluice` process as an operator runs it, and what the kernel and its own metrics say of it. Linux only. */
export interface Process {
  readonly url: string;
  readonly pid: number;
  end(): Promise<void>;
}

const launcher = fileURLToPath(new URL("../../bin/sluice.mjs", import.meta.url));

/** Starts `sluice ARGS` and resolves when `/readyz` answers 200. Rejects with its output when it ends first. */
export async function startSluice(args: readonly string[], port: number, logFile: string): Promise<Process> {
  const log = openSync(logFile, "w");
  const child = spawn(process.execPath, [launcher, ...args, "--port", String(port)], { stdio: ["ignore", log, log] });
  closeSync(log);
  const url = `http://127.0.0.1:${port}`;
  const kill = () => child.kill("SIGKILL");
  process.once("exit", kill);
  await untilReady(url, child, logFile);
  if (child.pid === undefined) throw new Error("a process without an id");
  return {
    url,
    pid: child.pid,
    async end() {
      process.off("exit", kill);
      if (child.exitCode !== null || child.signalCode !== null) return;
      const exited = once(child, "exit");
      child.kill("SIGTERM");
      await exited;
    },
  };
}

async function untilReady(url: string, child: ChildProcess, logFile: string): Promise<void> {
  for (;;) {
    if (child.exitCode !== null || child.signalCode !== null) {
      throw new Error(
        `a process ended before it was ready; its output ends:\n${readFileSync(logFile, "utf8").slice(-2_000)}`,
      );
    }
    const status = await request(`${url}/readyz`, { reset: true }).then(
      async ({ statusCode, body }) => {
        await body.dump();
        return statusCode;
      },
      () => 0,
    );
    if (status === 200) return;
    await sleep(100);
  }
}

/** A port that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("no port");
  return address.port;
}

export interface Resources {
  readonly residentBytes: number;
  readonly sockets: number;
  /** Connections that others have opened to this process and not closed. */
  readonly accepted: number;
  readonly cpuSeconds: number;
}

/** `statm` counts pages of 4 KiB, `stat` ticks of 10 ms (proc(5); both fixed on the Linux builds that Node supports). */
export async function resourcesOf({ pid, url }: Process): Promise<Resources> {
  const [statm, stat] = await Promise.all([
    readFile(`/proc/${pid}/statm`, "utf8"),
    readFile(`/proc/${pid}/stat`, "utf8"),
  ]);
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const descriptors = await readdir(`/proc/${pid}/fd`);
  // One may be closed between the listing and the look.
  const targets = await Promise.all(descriptors.map((fd) => readlink(`/proc/${pid}/fd/${fd}`).catch(() => "")));
  const sockets = targets.flatMap((target) => /^socket:\[(\d+)\]$/.exec(target)?.[1] ?? []);
  const accepted = await inodesAt(Number(new URL(url).port));
  return {
    residentBytes: Number(statm.split(" ")[1]) * 4096,
    sockets: sockets.length,
    accepted: sockets.filter((inode) => accepted.has(inode)).length,
    cpuSeconds: (Number(fields[11]) + Number(fields[12])) / 100,
  };
}

/** Sockets of this machine whose own end is `port`, but for the one that listens (proc_net_tcp: `0A`), by inode. */
async function inodesAt(port: number): Promise<ReadonlySet<string>> {
  const end = `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  const rows = (await readFile("/proc/net/tcp", "utf8")).split("\n").map((row) => row.trim().split(/\s+/));
  return new Set(
    rows.flatMap(([, local, , state, , , , , , inode]) =>
      local?.endsWith(end) && state !== "0A" && inode !== undefined ? [inode] : [],
    ),
  );
}

export type Metrics = ReadonlyMap<string, number>;

/** All samples of `/metrics`, by name with labels. */
export async function metricsOf({ url }: Process): Promise<Metrics> {
  const { body } = await request(`${url}/metrics`, { reset: true });
  const samples = new Map<string, number>();
  for (const line of (await body.text()).split("\n")) {
    const space = line.lastIndexOf(" ");
    if (!line.startsWith("#") && space > 0) samples.set(line.slice(0, space), Number(line.slice(space + 1)));
  }
  return samples;
}
