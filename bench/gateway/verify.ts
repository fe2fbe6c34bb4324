import { request } from "undici";
import type { Endpoint } from "./load.ts";
import { requestBody } from "./workload.ts";

interface Chunk {
  readonly choices: ReadonlyArray<{ readonly delta?: { readonly content?: string | null } }>;
}

/** One answer of each kind through a gateway, read in full. Throws when it is not the upstream's. */
export async function verify({ port, headers }: Endpoint, expected: string): Promise<void> {
  const ask = async (stream: boolean): Promise<string> => {
    const { statusCode, body } = await request(`http://127.0.0.1:${port}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json", ...headers },
      body: requestBody(stream, 0),
    });
    const text = await body.text();
    if (statusCode !== 200) throw new Error(`status ${statusCode}: ${text.slice(0, 500)}`);
    return text;
  };
  const whole = JSON.parse(await ask(false)) as { choices: Array<{ message: { content: string } }> };
  check(whole.choices[0]?.message.content, expected);
  const events = (await ask(true))
    .split("\n\n")
    .filter((event) => event.startsWith("data: "))
    .map((event) => event.slice("data: ".length));
  if (events.pop() !== "[DONE]") throw new Error("a stream does not end with [DONE]");
  const pieces = events.map((event) => (JSON.parse(event) as Chunk).choices[0]?.delta?.content ?? "");
  check(pieces.join(""), expected);
}

function check(found: string | undefined, expected: string): void {
  if (found !== expected) throw new Error(`another answer came through: ${JSON.stringify(found)}`);
}
