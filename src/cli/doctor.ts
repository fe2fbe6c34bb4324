import { spawnSync } from "node:child_process";
import { access, constants, mkdir, readFile, stat } from "node:fs/promises";
import { createRequire } from "node:module";
import { availableParallelism, totalmem } from "node:os";
import { fileURLToPath } from "node:url";
import type { Command } from "commander";
import { homeFolders } from "../config/home.ts";
import { exitCode } from "./exit.ts";
import { checkModel } from "./models.ts";
import { print, table } from "./output.ts";
import { freePort } from "./supervisor/supervisor.ts";

/** One line of the report. `fail`: Sluice does not run; `warn`: it runs, but something is slower or needs a rebuild. */
interface Finding {
  readonly level: "ok" | "warn" | "fail";
  readonly what: string;
  readonly detail: string;
}

export function addDoctor(program: Command, exit: (code: number) => void): void {
  program
    .command("doctor")
    .description("Check this machine: Node, toolchain, native addons, model, ports, CPU")
    .addHelpText("after", "\nExamples:\n  sluice doctor")
    .action(async () => {
      const findings = (await Promise.all(checks.map((check) => check()))).flat();
      print(table(findings.map(({ level, what, detail }) => [level.padEnd(4), what, detail])));
      exit(findings.some(({ level }) => level === "fail") ? exitCode.unavailable : exitCode.ok);
    });
}

type Findings = Finding | readonly Finding[];

const checks: ReadonlyArray<() => Findings | Promise<Findings>> = [
  node,
  cpu,
  memory,
  () => ["c++", "cmake", "python3"].map(toolchain),
  () => ["sluice_engine.node", "sluice_grammar.node"].map(addon),
  home,
  model,
  port,
];

function node(): Finding {
  const major = Number.parseInt(process.versions.node, 10);
  return { level: major >= 24 ? "ok" : "fail", what: "node", detail: `${process.version} (needs 24 or newer)` };
}

async function cpu(): Promise<Finding> {
  const detail = `${availableParallelism()} usable cores, ${process.arch}`;
  if (process.platform !== "linux" || process.arch !== "x64") return { level: "ok", what: "cpu", detail };
  const info = await readFile("/proc/cpuinfo", "utf8");
  const flags = new Set(/^flags\s*:\s*(.*)$/m.exec(info)?.[1]?.split(" "));
  const known = ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"];
  const found = known.filter((flag) => flags.has(flag));
  const fast = flags.has("avx2") && flags.has("fma");
  return {
    level: fast ? "ok" : "warn",
    what: "cpu",
    detail: `${detail}, ${found.join(" ") || "no vector extensions: the portable kernels are slow"}`,
  };
}

function memory(): Finding {
  const gib = totalmem() / 2 ** 30;
  return { level: gib < 2 ? "warn" : "ok", what: "memory", detail: `${gib.toFixed(1)} GiB` };
}

function toolchain(program: string): Finding {
  const result = spawnSync(program, ["--version"], { encoding: "utf8" });
  const version = result.stdout?.split("\n")[0] ?? "";
  return result.status === 0
    ? { level: "ok", what: program, detail: version }
    : { level: "warn", what: program, detail: "not found: native code cannot be built here" };
}

function addon(name: string): Finding {
  const path = fileURLToPath(new URL(`../../native/build/${name}`, import.meta.url));
  try {
    createRequire(import.meta.url)(path);
    return { level: "ok", what: name, detail: "loads" };
  } catch (error) {
    const reason = error instanceof Error ? (error.message.split("\n")[0] ?? "") : String(error);
    return { level: "fail", what: name, detail: `${reason}; build it with \`npm run build:native\`` };
  }
}

async function home(): Promise<Finding[]> {
  const { models, cache, state } = homeFolders();
  return await Promise.all(
    Object.entries({ models, cache, state }).map(async ([name, folder]): Promise<Finding> => {
      try {
        await mkdir(folder, { recursive: true });
        await access(folder, constants.W_OK);
        return { level: (await stat(folder)).isDirectory() ? "ok" : "fail", what: `${name} folder`, detail: folder };
      } catch (error) {
        return { level: "fail", what: `${name} folder`, detail: error instanceof Error ? error.message : folder };
      }
    }),
  );
}

async function model(): Promise<Finding> {
  const { present, detail } = await checkModel("smollm2");
  return { level: present ? "ok" : "warn", what: "model smollm2", detail };
}

async function port(): Promise<Finding> {
  try {
    await freePort("127.0.0.1", 8080, false);
    return { level: "ok", what: "port 8080", detail: "free" };
  } catch {
    return { level: "warn", what: "port 8080", detail: "taken: `sluice up` takes the next free one" };
  }
}
