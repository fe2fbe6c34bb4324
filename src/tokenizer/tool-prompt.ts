import {
  type ChatMessage,
  contentText,
  spacedJson,
  type TemplateMessage,
  type ToolDefinition,
} from "./chat-messages.ts";

/**
 * Tools for templates that have no place for them. The form is that of NousResearch's Hermes models and of Qwen: function
 * signatures inside <tools>, calls as JSON inside <tool_call>, results inside <tool_response>. Small models met it in
 * training more often than any other.
 */

/** What stands around a call's JSON object `{"name": ..., "arguments": ...}` in an answer. */
export interface ToolCallTags {
  readonly begin: string;
  readonly end: string;
}

export const HERMES_TAGS: ToolCallTags = { begin: "<tool_call>\n", end: "\n</tool_call>" };

/** The system text that tells a model of its functions and how to call them. */
export function toolPrompt(tools: readonly ToolDefinition[]): string {
  const signatures = tools.map((tool) => spacedJson({ type: tool.type, function: tool.function })).join("\n");
  return [
    "You may call functions to help with the user's request. Their signatures, one JSON object a line:",
    `<tools>\n${signatures}\n</tools>`,
    "To call a function, answer with its name and arguments as a JSON object between these tags, once for each call:",
    `${HERMES_TAGS.begin}{"name": "function name", "arguments": {"argument name": "value"}}${HERMES_TAGS.end}`,
    "When no function fits, answer in plain words.",
  ].join("\n\n");
}

/**
 * Messages for a template that knows only roles and contents: tools become part of the system message, an assistant's
 * calls part of its text, tool results a user message (neighbours joined, since many templates want turns to alternate).
 */
export function writeOutTools(messages: readonly ChatMessage[], tools: readonly ToolDefinition[]): TemplateMessage[] {
  const written: TemplateMessage[] = [];
  if (tools.length > 0 && !isSystem(messages[0])) written.push({ role: "system", content: toolPrompt(tools) });
  messages.forEach((message, index) => {
    const text = contentText(message.content) ?? "";
    if (index === 0 && isSystem(message) && tools.length > 0) {
      written.push({
        role: message.role,
        content: text === "" ? toolPrompt(tools) : `${text}\n\n${toolPrompt(tools)}`,
      });
    } else if (message.role === "tool" || message.role === "function") {
      const result = `<tool_response>\n${text}\n</tool_response>`;
      const before = written.at(-1);
      if (before?.role === "user" && isToolResult(messages[index - 1])) {
        written[written.length - 1] = { role: "user", content: `${before.content}\n${result}` };
      } else {
        written.push({ role: "user", content: result });
      }
    } else if (message.tool_calls !== undefined && message.tool_calls.length > 0) {
      const calls = message.tool_calls.map(({ function: called }) => {
        // The argument text as the model wrote it: parsing it would reorder nothing but lose large numbers.
        const json = `{"name": ${JSON.stringify(called.name)}, "arguments": ${called.arguments.trim() || "{}"}}`;
        return `${HERMES_TAGS.begin}${json}${HERMES_TAGS.end}`;
      });
      written.push({ role: message.role, content: [text, ...calls].filter((part) => part !== "").join("\n") });
    } else {
      const { role, name } = message;
      written.push(name === undefined ? { role, content: text } : { role, name, content: text });
    }
  });
  return written;
}

function isSystem(message: ChatMessage | undefined): boolean {
  return message?.role === "system" || message?.role === "developer";
}

function isToolResult(message: ChatMessage | undefined): boolean {
  return message?.role === "tool" || message?.role === "function";
}
