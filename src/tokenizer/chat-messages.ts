import { invalidRequest } from "../errors.ts";

/** OpenAI's chat message as far as templates read it; fields beyond these are handed on to the template. */
export interface ChatMessage {
  readonly role: string;
  readonly content?: string | readonly ContentPart[] | null | undefined;
  readonly name?: string | undefined;
  readonly tool_calls?: readonly ToolCall[] | undefined;
  readonly tool_call_id?: string | undefined;
}

export interface ContentPart {
  readonly type: string;
  readonly text?: string | undefined;
}

export interface ToolCall {
  readonly id?: string | undefined;
  readonly type?: string | undefined;
  /** `arguments`: JSON text, as the API has it. */
  readonly function: { readonly name: string; readonly arguments: string };
}

export interface ToolDefinition {
  readonly type: "function";
  readonly function: {
    readonly name: string;
    readonly description?: string | undefined;
    readonly parameters?: unknown;
  };
}

/** A message as a template gets it: `content` is a string or null, `tool_calls[].function.arguments` as it wants them. */
export type TemplateMessage = Readonly<Record<string, unknown>> & {
  readonly role: string;
  readonly content: string | null;
};

/** Templates build special tokens from roles (`'<|' + role + '|>'`), so a role is never free text. */
const ROLES: ReadonlySet<string> = new Set(["system", "developer", "user", "assistant", "tool", "function"]);

/** Throws a 400 for a role that is none of OpenAI's. */
export function checkRoles(messages: readonly ChatMessage[]): void {
  messages.forEach((message, index) => {
    if (ROLES.has(message.role)) return;
    throw invalidRequest(
      "invalid_role",
      "A message's role must be system, developer, user, assistant or tool.",
      `messages[${index}].role`,
    );
  });
}

/** Text parts joined by line ends, as vLLM does; parts of other kinds are refused before this. */
export function contentText(content: ChatMessage["content"]): string | null {
  if (content === undefined || content === null) return null;
  if (typeof content === "string") return content;
  return content.map((part) => part.text ?? "").join("\n");
}

/** JSON as Python's `json.dumps` spaces it, which is what models saw in training. */
export function spacedJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(spacedJson).join(", ")}]`;
  if (typeof value === "object" && value !== null) {
    const members = Object.entries(value).filter(([, member]) => member !== undefined);
    return `{${members.map(([key, member]) => `${JSON.stringify(key)}: ${spacedJson(member)}`).join(", ")}}`;
  }
  return JSON.stringify(value) ?? "null";
}
