import type { DispatchEvent } from "../request.ts";

/**
 * An answer kept back until it is whole, for a caller who would rather wait than see one break: until then it may begin
 * anew anywhere, and a failure still has a status of its own. Bounded by the tokens that the answer may have.
 */
export async function* untilWhole(events: AsyncIterable<DispatchEvent>): AsyncGenerator<DispatchEvent> {
  let output: DispatchEvent[] = [];
  for await (const event of events) {
    switch (event.type) {
      case "tokens":
      case "text":
        output.push(event);
        break;
      case "restart":
        output = [];
        break;
      case "finish":
        yield* output;
        yield event;
        return;
      default:
        yield event;
    }
  }
}
