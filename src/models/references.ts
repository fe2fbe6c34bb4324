import { isAbsolute } from "node:path";
import { modelFault } from "./fault.ts";

/** Where a model file comes from. `sha256` is lower-case hex of the file itself. */
export type ModelReference =
  | {
      readonly kind: "pypi";
      readonly package: string;
      readonly version: string;
      /** Path of the file inside the wheel. */
      readonly member: string;
      readonly sha256: string | undefined;
    }
  | { readonly kind: "file"; readonly path: string; readonly sha256: string | undefined }
  | { readonly kind: "url"; readonly url: string; readonly sha256: string | undefined }
  | {
      readonly kind: "hf";
      readonly repository: string;
      readonly file: string;
      readonly revision: string;
      readonly sha256: string | undefined;
    };

const SYNTAX = {
  pypi: "pypi:PACKAGE==VERSION#PATH/IN/WHEEL[@sha256:HEX]",
  hf: "hf:ORG/REPO/FILE[@REVISION][#sha256=HEX]",
  file: "file:PATH[#sha256=HEX]",
  url: "https://HOST/PATH[#sha256=HEX]",
};

const PACKAGE = /^[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?$/;
const VERSION = /^[A-Za-z0-9][A-Za-z0-9.!+_-]*$/;
const HF_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]*$/;
const REVISION = /^[A-Za-z0-9][A-Za-z0-9._/-]*$/;

/** Throws SluiceError `bad_model_reference` that shows the form the reference should have. */
export function parseModelReference(text: string): ModelReference {
  const colon = text.indexOf(":");
  const scheme = text.slice(0, Math.max(colon, 0));
  const rest = text.slice(colon + 1);
  switch (scheme) {
    case "pypi":
      return parsePypi(text, rest);
    case "file":
      return parseFile(text, rest);
    case "hf":
      return parseHf(text, rest);
    case "https":
    case "http":
      return parseUrl(text);
    default:
      throw bad(text, `expected one of: ${Object.values(SYNTAX).join(", ")}`);
  }
}

/** The reference as text again, in the one form that names it in the store. */
export function formatModelReference(reference: ModelReference): string {
  const fragment = reference.sha256 === undefined ? "" : `#sha256=${reference.sha256}`;
  switch (reference.kind) {
    case "pypi": {
      const pinned = reference.sha256 === undefined ? "" : `@sha256:${reference.sha256}`;
      return `pypi:${reference.package}==${reference.version}#${reference.member}${pinned}`;
    }
    case "file":
      return `file:${reference.path}${fragment}`;
    case "url":
      return `${reference.url}${fragment}`;
    case "hf":
      return `hf:${reference.repository}/${reference.file}@${reference.revision}${fragment}`;
  }
}

/** The name of the file that the reference brings. */
export function modelFileName(reference: ModelReference): string {
  const path = reference.kind === "pypi" ? reference.member : reference.kind === "hf" ? reference.file : undefined;
  const full =
    path ??
    (reference.kind === "file" ? reference.path : reference.kind === "url" ? new URL(reference.url).pathname : "");
  return full.slice(full.lastIndexOf("/") + 1);
}

/** Plain http is for tests and caches on this machine: elsewhere a model could be replaced on the way. */
export function isLoopback(url: URL): boolean {
  return url.hostname === "localhost" || url.hostname === "[::1]" || /^127(\.\d{1,3}){3}$/.test(url.hostname);
}

function parsePypi(text: string, rest: string): ModelReference {
  const [requirement = "", inside] = splitOnce(rest, "#");
  const [name = "", version] = splitOnce(requirement, "==");
  if (inside === undefined || version === undefined || !PACKAGE.test(name) || !VERSION.test(version))
    throw bad(text, SYNTAX.pypi);
  const [member = "", hash] = splitOnce(inside, "@sha256:");
  return { kind: "pypi", package: name, version, member: safePath(text, member), sha256: parseHash(text, hash) };
}

function parseFile(text: string, rest: string): ModelReference {
  const [path = "", hash] = splitOnce(rest, "#sha256=");
  const plain = path.startsWith("//") ? path.slice(2) : path;
  if (plain === "") throw bad(text, SYNTAX.file);
  return { kind: "file", path: plain, sha256: parseHash(text, hash) };
}

function parseUrl(text: string): ModelReference {
  const [address = "", hash] = splitOnce(text, "#sha256=");
  if (!URL.canParse(address)) throw bad(text, SYNTAX.url);
  const url = new URL(address);
  if (url.protocol === "http:" && !isLoopback(url))
    throw bad(text, "plain http is only for loopback addresses; use https");
  if (url.username !== "" || url.password !== "")
    throw bad("(an address with a password)", "credentials do not belong into a reference");
  if (url.hash !== "" || url.pathname.endsWith("/")) throw bad(text, SYNTAX.url);
  return { kind: "url", url: url.href, sha256: parseHash(text, hash) };
}

function parseHf(text: string, rest: string): ModelReference {
  const [address = "", hash] = splitOnce(rest, "#sha256=");
  const [path = "", revision] = splitOnce(address, "@");
  const [organisation = "", repository = "", ...file] = path.split("/");
  if (!HF_NAME.test(organisation) || !HF_NAME.test(repository) || file.length === 0) throw bad(text, SYNTAX.hf);
  if (revision !== undefined && !REVISION.test(revision)) throw bad(text, SYNTAX.hf);
  return {
    kind: "hf",
    repository: `${organisation}/${repository}`,
    file: safePath(text, file.join("/")),
    revision: revision ?? "main",
    sha256: parseHash(text, hash),
  };
}

function parseHash(text: string, hash: string | undefined): string | undefined {
  if (hash === undefined) return undefined;
  if (!/^[0-9a-fA-F]{64}$/.test(hash)) throw bad(text, "a sha256 has 64 hexadecimal digits");
  return hash.toLowerCase();
}

/** A path below some folder, never out of it. */
function safePath(text: string, path: string): string {
  const parts = path.split("/");
  if (isAbsolute(path) || path.includes("\\") || parts.some((part) => part === "" || part === "." || part === "..")) {
    throw bad(text, `"${path}" is not a plain path`);
  }
  return path;
}

function splitOnce(text: string, separator: string): [string, string | undefined] {
  const at = text.indexOf(separator);
  return at < 0 ? [text, undefined] : [text.slice(0, at), text.slice(at + separator.length)];
}

function bad(text: string, expected: string): Error {
  return modelFault("bad_model_reference", `model reference "${text}": ${expected}`);
}
