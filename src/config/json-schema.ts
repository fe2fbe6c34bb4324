import { z } from "zod";
import { configSchema } from "./schema.ts";

/** JSON Schema of the configuration file as it is written (before defaults), for editors and Terraform. */
export function configJsonSchema(): Record<string, unknown> {
  return { ...z.toJSONSchema(configSchema, { io: "input", unrepresentable: "any" }), title: "Sluice configuration" };
}
