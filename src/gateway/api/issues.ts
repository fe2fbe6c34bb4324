import type { z } from "zod";
import { invalidRequest, type SluiceError } from "../../errors.ts";

type Issue = z.core.$ZodIssue;
type Path = readonly PropertyKey[];

/** `["messages", 0, "content"]` -> `messages[0].content`, the form OpenAI's own errors use. */
export function formatPath(path: Path): string {
  let text = "";
  for (const key of path) {
    if (typeof key === "number") text += `[${key}]`;
    else text += text === "" ? String(key) : `.${String(key)}`;
  }
  return text;
}

/** The one fault to tell a caller about: the first zod found, taken from the union branch that came furthest. */
export function firstFault(issues: readonly Issue[], path: Path = []): { readonly issue: Issue; readonly path: Path } {
  const [first] = issues;
  if (first === undefined) throw new TypeError("a failed parse has at least one issue");
  const here = [...path, ...first.path];
  if (first.code !== "invalid_union" || first.errors.length === 0) return { issue: first, path: here };
  // A branch that fails on the value as a whole was never meant; one that fails deeper was.
  const deeper = first.errors.find((branch) => branch.length > 0 && branch.every((issue) => issue.path.length > 0));
  const meant = deeper ?? first.errors.find((branch) => branch.some((issue) => issue.code !== "invalid_type"));
  return meant === undefined || meant.length === 0 ? { issue: first, path: here } : firstFault(meant, here);
}

function valueAt(body: unknown, path: Path): unknown {
  let value = body;
  for (const key of path) {
    if (typeof value !== "object" || value === null) return undefined;
    value = Reflect.get(value, key);
  }
  return value;
}

function typeName(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "an array";
  if (typeof value === "number") return Number.isInteger(value) ? "an integer" : "a number";
  return typeof value === "object" ? "an object" : `a ${typeof value}`;
}

const expectedOf = (issue: Issue): string => {
  if (issue.code === "invalid_type") return issue.expected;
  if (issue.code !== "invalid_union") return "";
  const kinds = issue.errors.flatMap((branch) => branch.map((inner) => expectedOf(inner)));
  return [...new Set(kinds.filter((kind) => kind !== ""))].join(" or ");
};

/**
 * A failed parse of a caller's body as a 400 with OpenAI's codes. No message repeats the value: it may be prompt text.
 */
export function bodyError(issues: readonly Issue[], body: unknown): SluiceError {
  const { issue, path } = firstFault(issues);
  const param = formatPath(path);
  if (issue.code === "unrecognized_keys") {
    const name = formatPath([...path, issue.keys[0] ?? ""]);
    return invalidRequest("unknown_parameter", `Unknown parameter: '${name}'.`, name);
  }
  if (issue.code === "custom" && typeof issue.params?.code === "string") {
    return invalidRequest(issue.params.code, `Unsupported parameter: '${param}'. ${issue.message}`, param);
  }
  const value = valueAt(body, path);
  if (value === undefined && path.length > 0) {
    return invalidRequest("missing_required_parameter", `Missing required parameter: '${param}'.`, param);
  }
  const where = param === "" ? "the body" : `'${param}'`;
  const expected = expectedOf(issue);
  if (expected !== "" && (issue.code === "invalid_type" || issue.code === "invalid_union")) {
    const message = `Invalid type for ${where}: expected ${expected}, but got ${typeName(value)} instead.`;
    return invalidRequest("invalid_type", message, param === "" ? undefined : param);
  }
  return invalidRequest("invalid_value", `Invalid value for ${where}: ${issue.message}.`, param);
}

/** Removes the members that `issues` call unknown; false when there is any other fault. For `compat.unknownFields: ignore`. */
export function dropUnknown(issues: readonly Issue[], body: unknown): boolean {
  for (const top of issues) {
    const { issue, path } = firstFault([top]);
    if (issue.code !== "unrecognized_keys") return false;
    const holder = valueAt(body, path);
    if (typeof holder !== "object" || holder === null) return false;
    for (const key of issue.keys) Reflect.deleteProperty(holder, key);
  }
  return true;
}
