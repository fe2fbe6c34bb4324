/**
 * Takes tool calls in the Hermes form out of an answer's text:
 *
 *   <tool_call>
 *   {"name": "get_weather", "arguments": {"city": "Seoul"}}
 *   </tool_call>
 *
 * Arguments are passed on as they come, byte for byte, so that a caller sees them grow. What looks like a call and turns
 * out to be none is given back as content, markers included.
 */
export type ToolPart =
  | { readonly type: "content"; readonly text: string }
  /** `id` where the backend gave one. */
  | { readonly type: "call"; readonly index: number; readonly name: string; readonly id?: string | undefined }
  | { readonly type: "arguments"; readonly index: number; readonly text: string };

const opening = "<tool_call>";
const closing = "</tool_call>";
const head = /^\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)/;
/** A name is at most 64 characters; past this a head that has not matched is in another order and is read at its end. */
const headLimit = 512;

type State =
  | { readonly name: "content" }
  | { readonly name: "head" }
  | { readonly name: "arguments"; depth: number; inString: boolean; escaped: boolean }
  | { readonly name: "tail" };

export class ToolCallParser {
  readonly #tools: ReadonlySet<string>;
  #state: State = { name: "content" };
  #buffer = "";
  #calls = 0;

  constructor(tools: ReadonlySet<string>) {
    this.#tools = tools;
  }

  /** Calls begun so far. */
  get calls(): number {
    return this.#calls;
  }

  /** UTF-16 units of content kept back because they may begin a call. */
  get heldLength(): number {
    return this.#buffer.length;
  }

  push(piece: string): ToolPart[] {
    const parts: ToolPart[] = [];
    this.#buffer += piece;
    while (this.#step(parts));
    return parts;
  }

  /** The answer is over. An unfinished head is content; an unfinished call stays as far as it came. */
  finish(): ToolPart[] {
    const rest = this.#buffer;
    this.#buffer = "";
    if (rest === "" || this.#state.name === "tail" || this.#state.name === "arguments") return [];
    return [{ type: "content", text: this.#state.name === "head" ? opening + rest : rest }];
  }

  /** One move; false when more text is needed. */
  #step(parts: ToolPart[]): boolean {
    switch (this.#state.name) {
      case "content":
        return this.#content(parts);
      case "head":
        return this.#head(parts);
      case "arguments":
        return this.#arguments(parts, this.#state);
      case "tail":
        return this.#tail();
    }
  }

  #content(parts: ToolPart[]): boolean {
    const at = this.#buffer.indexOf(opening);
    const keep = at < 0 ? beginningAtEnd(this.#buffer, opening) : 0;
    const text = at < 0 ? this.#buffer.slice(0, this.#buffer.length - keep) : this.#buffer.slice(0, at);
    if (text !== "") parts.push({ type: "content", text });
    if (at < 0) {
      this.#buffer = keep === 0 ? "" : this.#buffer.slice(-keep);
      return false;
    }
    this.#buffer = this.#buffer.slice(at + opening.length);
    this.#state = { name: "head" };
    return true;
  }

  #head(parts: ToolPart[]): boolean {
    const end = this.#buffer.indexOf(closing);
    const match = this.#buffer.length <= headLimit || end >= 0 ? head.exec(this.#buffer) : null;
    const name = match?.[1] === undefined ? undefined : parseString(match[1]);
    if (match !== null && name !== undefined && this.#tools.has(name)) {
      this.#begin(parts, name);
      this.#buffer = this.#buffer.slice(match[0].length);
      this.#state = { name: "arguments", depth: 0, inString: false, escaped: false };
      return true;
    }
    if (end < 0) return false;
    const whole = this.#buffer.slice(0, end);
    const call = parseCall(whole, this.#tools);
    if (call === undefined) {
      parts.push({ type: "content", text: opening + whole + closing });
    } else {
      const index = this.#begin(parts, call.name);
      parts.push({ type: "arguments", index, text: call.arguments });
    }
    this.#buffer = this.#buffer.slice(end + closing.length);
    this.#state = { name: "content" };
    return true;
  }

  #begin(parts: ToolPart[], name: string): number {
    const index = this.#calls++;
    parts.push({ type: "call", index, name });
    return index;
  }

  #arguments(parts: ToolPart[], state: Extract<State, { name: "arguments" }>): boolean {
    const text = this.#buffer;
    let at = 0;
    for (; at < text.length; at++) {
      const unit = text[at];
      if (state.inString) {
        if (state.escaped) state.escaped = false;
        else if (unit === "\\") state.escaped = true;
        else if (unit === '"') state.inString = false;
      } else if (unit === '"') state.inString = true;
      else if (unit === "{" || unit === "[") state.depth++;
      else if ((unit === "}" || unit === "]") && --state.depth === 0) break;
    }
    const done = at < text.length;
    const taken = text.slice(0, done ? at + 1 : at);
    if (taken !== "") parts.push({ type: "arguments", index: this.#calls - 1, text: taken });
    this.#buffer = text.slice(taken.length);
    if (done) this.#state = { name: "tail" };
    return done;
  }

  #tail(): boolean {
    const end = this.#buffer.indexOf(closing);
    if (end < 0) return false;
    this.#buffer = this.#buffer.slice(end + closing.length);
    this.#state = { name: "content" };
    return true;
  }
}

/** Length of the longest end of `text` that begins `marker` without completing it. */
function beginningAtEnd(text: string, marker: string): number {
  for (let length = Math.min(marker.length - 1, text.length); length > 0; length--) {
    if (text.endsWith(marker.slice(0, length))) return length;
  }
  return 0;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function parseString(json: string): string | undefined {
  const value = parseJson(json);
  return typeof value === "string" ? value : undefined;
}

function parseCall(text: string, tools: ReadonlySet<string>): { name: string; arguments: string } | undefined {
  const value = parseJson(text);
  if (typeof value !== "object" || value === null) return undefined;
  const { name, arguments: given } = value as { name?: unknown; arguments?: unknown };
  if (typeof name !== "string" || !tools.has(name)) return undefined;
  return { name, arguments: typeof given === "string" ? given : JSON.stringify(given ?? {}) };
}
