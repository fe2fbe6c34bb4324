import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** The other gateways, in the versions that the table names, below `.cache/peers`. */

const npmPackages = { "@portkey-ai/gateway": "1.15.2" } as const;
/** Later ones alias the upstream's immutable headers, and Portkey then answers every stream with a 500. */
const npmOverrides = { "@hono/node-server": "1.13.5" } as const;
const pythonPackages = { smg: "1.13.0", "vllm-router": "0.1.17" } as const;

export const peerVersions = { ...npmPackages, ...npmOverrides, ...pythonPackages };

export interface Peers {
  readonly portkey: string;
  readonly smg: string;
  readonly vllmRouter: string;
}

/** Throws with the reason when one cannot be had: a table without it would say something else. */
export function installPeers(folder: string, say: (text: string) => void): Peers {
  const npmFolder = join(folder, "gateways");
  const venv = join(folder, "routers", "venv");
  const portkey = join(npmFolder, "node_modules/@portkey-ai/gateway/build/start-server.js");
  const manifest = JSON.stringify({ private: true, dependencies: npmPackages, overrides: npmOverrides }, undefined, 2);
  const manifestFile = join(npmFolder, "package.json");
  if (!existsSync(portkey) || readFileSync(manifestFile, "utf8") !== manifest) {
    say("installing Portkey from npm");
    mkdirSync(npmFolder, { recursive: true });
    writeFileSync(manifestFile, manifest);
    run("npm", ["install", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=dev"], npmFolder);
  }
  const smg = join(venv, "bin/smg");
  const vllmRouter = join(venv, "bin/vllm-router");
  if (!existsSync(smg) || !existsSync(vllmRouter)) {
    say("installing smg and vllm-router from PyPI");
    mkdirSync(join(folder, "routers"), { recursive: true });
    run("python3", ["-m", "venv", venv], folder);
    const wanted = Object.entries(pythonPackages).map(([name, version]) => `${name}==${version}`);
    run(join(venv, "bin/pip"), ["install", "--quiet", ...wanted], folder);
  }
  for (const [name, version] of Object.entries(npmPackages)) {
    const text = readFileSync(join(npmFolder, "node_modules", name, "package.json"), "utf8");
    check(name, version, (JSON.parse(text) as { version: string }).version);
  }
  const listed = run(join(venv, "bin/pip"), ["list", "--format=json"], folder);
  const installed = JSON.parse(listed) as Array<{ name: string; version: string }>;
  for (const [name, version] of Object.entries(pythonPackages)) {
    check(name, version, installed.find((entry) => entry.name === name)?.version);
  }
  return { portkey, smg, vllmRouter };
}

function check(name: string, wanted: string, found: string | undefined): void {
  if (found !== wanted) throw new Error(`${name} ${wanted} is wanted and ${found ?? "none"} is installed`);
}

function run(program: string, args: readonly string[], cwd: string): string {
  try {
    return execFileSync(program, args, { cwd, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
  } catch (error) {
    const output = error instanceof Error && "stderr" in error ? String(error.stderr) : String(error);
    throw new Error(`${program} ${args.join(" ")} failed:\n${output.slice(-2_000)}`);
  }
}
