import { invalidRequest } from "../errors.ts";
import type { GrammarSource } from "./grammar.ts";

/** A function that the model may call, as OpenAI's `tools[]` has it. */
export interface GrammarTool {
  readonly function: { readonly name: string; readonly parameters?: unknown };
  readonly strict: boolean;
}

export interface ToolGrammarInput {
  readonly tools: readonly GrammarTool[];
  readonly choice: "auto" | "none" | "required" | { readonly function: { readonly name: string } };
  /** Whether one answer may hold several calls. */
  readonly parallel: boolean;
}

/** What stands around a call's JSON object in the model's own form. */
export interface ToolCallMarks {
  readonly begin: string;
  readonly end: string;
}

/** `<tool_call>` as Hermes and Qwen models write it, and SmolLM2 by our tool prompt. */
export const HERMES_MARKS: ToolCallMarks = { begin: "<tool_call>\n", end: "\n</tool_call>" };

/**
 * Keeps calls to their functions' schemas: free text until the opening mark with `auto`, nothing but calls with `required`
 * or a named function. Undefined for `none`. Throws a 400 for a named function that is not among the tools.
 *
 * The form is XGrammar's structural tag (docs/structural_tag in its repository): `triggered_tags` watches free text for the
 * mark; `tags_with_separator` allows nothing between calls but the separator.
 */
export function toolGrammar(input: ToolGrammarInput, marks: ToolCallMarks = HERMES_MARKS): GrammarSource | undefined {
  const { choice, parallel } = input;
  if (choice === "none" || input.tools.length === 0) return undefined;
  const wanted = typeof choice === "object" ? choice.function.name : undefined;
  const tags = input.tools.flatMap((tool, i) => {
    const { name, parameters } = tool.function;
    if (wanted !== undefined && name !== wanted) return [];
    return [
      {
        type: "tag",
        begin: `${marks.begin}{"name": ${JSON.stringify(name)}, "arguments": `,
        content: {
          type: "json_schema",
          json_schema: parameters ?? { type: "object", properties: {}, required: [], additionalProperties: false },
          strict: tool.strict,
          param: `tools[${i}].function.parameters`,
        },
        end: `}${marks.end}`,
      },
    ];
  });
  if (tags.length === 0) {
    throw invalidRequest(
      "invalid_value",
      `The function '${wanted}' is not among the tools.`,
      "tool_choice.function.name",
    );
  }
  const once = typeof choice === "object" || !parallel;
  const format =
    choice === "auto"
      ? { type: "triggered_tags", triggers: [marks.begin.trimEnd()], tags, at_least_one: false, stop_after_first: once }
      : { type: "tags_with_separator", tags, separator: "\n", at_least_one: true, stop_after_first: once };
  return { kind: "structural_tag", tag: { type: "structural_tag", format } };
}
