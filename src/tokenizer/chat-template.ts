import { Environment, Interpreter, parse, tokenize } from "@huggingface/jinja";
import { LRUCache } from "lru-cache";
import { invalidRequest, SluiceError } from "../errors.ts";
import {
  type ChatMessage,
  checkRoles,
  contentText,
  type TemplateMessage,
  type ToolDefinition,
} from "./chat-messages.ts";
import { tokenizerFault } from "./fault.ts";
import { type Author, chooseMarker, type RenderedPart, type SpecialText } from "./special-text.ts";
import { templateGlobals } from "./template-globals.ts";
import { HERMES_TAGS, type ToolCallTags, writeOutTools } from "./tool-prompt.ts";

export interface ChatInput {
  readonly messages: readonly ChatMessage[];
  readonly tools?: readonly ToolDefinition[] | undefined;
  /** Ends the prompt with the opening of the assistant's turn. */
  readonly addGenerationPrompt: boolean;
  /** More variables for the template (`enable_thinking`, ...); vLLM's `chat_template_kwargs`. */
  readonly templateKwargs?: Readonly<Record<string, unknown>> | undefined;
}

/** Deeper than any real tool schema; a bound, because rendering recurses and a caller chooses the depth. */
const MAX_DEPTH = 128;
/** Variables that are the renderer's own: a caller's templateKwargs cannot replace them. */
const RESERVED: ReadonlySet<string> = new Set([
  "messages",
  "tools",
  "add_generation_prompt",
  "raise_exception",
  "strftime_now",
  "range",
]);

type Program = ReturnType<typeof parse>;

/** What a template does, found once by looking through its syntax tree. */
interface CompiledTemplate {
  readonly program: Program;
  /** It has a place for tools. */
  readonly readsTools: boolean;
  /** It handles call arguments that are JSON text; otherwise it expects the object. */
  readonly takesArgumentText: boolean;
  readonly knowsDeveloper: boolean;
}

const compiled = new LRUCache<string, CompiledTemplate>({ max: 32 });

function compileTemplate(source: string): CompiledTemplate {
  const known = compiled.get(source);
  if (known !== undefined) return known;
  let program: Program;
  try {
    // HF compiles chat templates with these two settings; the default ones leave other white space.
    program = parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true }));
  } catch (error) {
    throw tokenizerFault(
      `the chat template does not parse: ${error instanceof Error ? error.message : "unknown fault"}`,
      error,
    );
  }
  const made: CompiledTemplate = {
    program,
    readsTools: readsVariable(program, "tools"),
    takesArgumentText: /arguments\s+is\s+string/.test(source),
    knowsDeveloper: /["']developer["']/.test(source),
  };
  compiled.set(source, made);
  return made;
}

/** True when some identifier of the syntax tree is `name`: a mention in a comment or a text does not count. */
function readsVariable(node: unknown, name: string): boolean {
  if (Array.isArray(node)) return node.some((child) => readsVariable(child, name));
  if (node instanceof Map) return [...node].some((pair) => readsVariable(pair, name));
  if (typeof node !== "object" || node === null) return false;
  if ("type" in node && node.type === "Identifier" && "value" in node && node.value === name) return true;
  return Object.values(node).some((child) => readsVariable(child, name));
}

/** A model's chat template, ready to render. Throws SluiceError `bad_tokenizer_file` when it does not parse. */
export class ChatTemplate {
  readonly #source: string;
  readonly #compiled: CompiledTemplate;
  readonly #special: SpecialText;
  readonly #tokens: Readonly<Record<string, string>>;
  /** How calls look in an answer; undefined where the template's own form is not the <tool_call> one. */
  readonly toolCallTags: ToolCallTags | undefined;

  /** `tokens`: `bos_token` and its like, as the template reads them. */
  constructor(source: string, special: SpecialText, tokens: Readonly<Record<string, string>>) {
    this.#source = source;
    this.#compiled = compileTemplate(source);
    this.#special = special;
    this.#tokens = tokens;
    this.toolCallTags = !this.#compiled.readsTools || source.includes("<tool_call>") ? HERMES_TAGS : undefined;
  }

  /**
   * The prompt as parts: special tokens that the template wrote, and ordinary text between them. Nothing in `input`
   * becomes a special token (special-text.ts says how). Throws a 400 when the template refuses or cannot render them.
   */
  render(input: ChatInput): RenderedPart[] {
    checkRoles(input.messages);
    // First of all, since it bounds the nesting that everything after it walks.
    const strings = [this.#source];
    collectStrings([input.messages, input.tools, input.templateKwargs], 0, strings);
    const marker = chooseMarker(strings);
    if (marker === undefined) {
      throw invalidRequest(
        "unusable_text",
        "The messages use every private use character of Unicode's basic plane.",
        "messages",
      );
    }
    const shielded = this.#shieldVariables(this.#variables(input), marker);
    const rendered = this.#run(
      { ...shielded, ...this.#tokens, add_generation_prompt: input.addGenerationPrompt },
      (reason) => {
        const told = typeof reason === "string" ? reason.replaceAll(marker, "") : "no reason given";
        throw invalidRequest(
          "template_refused",
          `The model's chat template refuses these messages: ${told}`,
          "messages",
        );
      },
    );
    return this.#special.cut(rendered, marker);
  }

  #variables(input: ChatInput): Record<string, unknown> {
    const { readsTools, knowsDeveloper } = this.#compiled;
    const tools = input.tools ?? [];
    const messages = (readsTools ? this.#nativeMessages(input.messages) : writeOutTools(input.messages, tools)).map(
      (message) => (message.role === "developer" && !knowsDeveloper ? { ...message, role: "system" } : message),
    );
    const extra = Object.entries(input.templateKwargs ?? {}).filter(
      ([name]) => !RESERVED.has(name) && !Object.hasOwn(this.#tokens, name),
    );
    // HF passes none, not an empty list, when there are no tools; templates test for it.
    return { ...Object.fromEntries(extra), messages, tools: tools.length > 0 ? tools : null };
  }

  #nativeMessages(messages: readonly ChatMessage[]): TemplateMessage[] {
    return messages.map((message) => {
      const content = contentText(message.content);
      if (message.tool_calls === undefined || message.tool_calls.length === 0) {
        const { tool_calls: _none, ...rest } = message;
        return { ...rest, content };
      }
      const calls = message.tool_calls.map((call) => ({
        ...call,
        function: { ...call.function, arguments: this.#callArguments(call.function.arguments) },
      }));
      return { ...message, content, tool_calls: calls };
    });
  }

  /** Most templates print arguments with `tojson` and so want the object; text that is no object stays text. */
  #callArguments(text: string): unknown {
    if (this.#compiled.takesArgumentText) return text;
    try {
      const value: unknown = JSON.parse(text);
      return typeof value === "object" && value !== null ? value : text;
    } catch {
      return text;
    }
  }

  #shieldVariables(variables: Readonly<Record<string, unknown>>, marker: string): Record<string, unknown> {
    const { messages, ...rest } = variables;
    const shieldedMessages = (Array.isArray(messages) ? messages : []).map((message: TemplateMessage) => {
      const { role, ...fields } = message;
      return { role, ...this.#shieldMembers(fields, marker, role === "assistant" ? "assistant" : "caller") };
    });
    return { ...this.#shieldMembers(rest, marker, "caller"), messages: shieldedMessages };
  }

  #shieldMembers(record: Readonly<Record<string, unknown>>, marker: string, author: Author): Record<string, unknown> {
    const shielded: Record<string, unknown> = {};
    for (const [key, value] of Object.entries(record)) {
      if (value !== undefined)
        shielded[this.#special.shield(key, marker, author)] = this.#shieldValue(value, marker, author);
    }
    return shielded;
  }

  #shieldValue(value: unknown, marker: string, author: Author): unknown {
    if (typeof value === "string") return this.#special.shield(value, marker, author);
    if (Array.isArray(value)) return value.map((item) => this.#shieldValue(item, marker, author));
    if (isRecord(value)) return this.#shieldMembers(value, marker, author);
    return value;
  }

  #run(variables: Readonly<Record<string, unknown>>, refuse: (reason: unknown) => never): string {
    const environment = new Environment(templateGlobals(refuse, () => new Date()));
    try {
      for (const [name, value] of Object.entries(variables)) environment.set(name, value);
      const { value } = new Interpreter(environment).run(this.#compiled.program);
      if (typeof value !== "string") throw new TypeError("the template gave no text");
      return value;
    } catch (error) {
      if (error instanceof SluiceError) throw error;
      // A message of a shape the template was not written for, e.g. no content where it joins strings.
      throw new SluiceError({
        status: 400,
        type: "invalid_request_error",
        code: "template_failed",
        message: "The model's chat template cannot render these messages.",
        param: "messages",
        cause: error,
      });
    }
  }
}

/** Adds every string inside, keys included, to `found`. Throws a 400 when nested deeper than MAX_DEPTH. */
function collectStrings(value: unknown, depth: number, found: string[]): void {
  if (depth > MAX_DEPTH) {
    throw invalidRequest(
      "nesting_too_deep",
      `Messages and tools may nest at most ${MAX_DEPTH} levels deep.`,
      "messages",
    );
  }
  if (typeof value === "string") found.push(value);
  else if (Array.isArray(value)) for (const item of value) collectStrings(item, depth + 1, found);
  else if (isRecord(value)) {
    for (const [key, member] of Object.entries(value)) {
      found.push(key);
      collectStrings(member, depth + 1, found);
    }
  }
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
