import { expect, test } from "vitest";
import { say, scriptedDispatcher } from "./testing/dispatcher.ts";
import { startTestGateway } from "./testing/gateway.ts";

const hello = { model: "tiny", messages: [{ role: "user" as const, content: "Hi" }] };

test("a chat comes back whole, with usage and the pool that answered", async () => {
  await using gateway = await startTestGateway(scriptedDispatcher(say("Hel", "lo!")));
  const { data, response } = await gateway.openai.chat.completions.create(hello).withResponse();
  expect(data.object).toBe("chat.completion");
  expect(data.model).toBe("tiny");
  expect(data.choices).toHaveLength(1);
  expect(data.choices[0]?.message.content).toBe("Hello!");
  expect(data.choices[0]?.finish_reason).toBe("stop");
  expect(data.usage?.completion_tokens).toBe(7);
  expect(data.usage?.prompt_tokens_details?.cached_tokens).toBe(4);
  expect(response.headers.get("x-sluice-pool")).toBe("east");
  expect(data.id).toBe(`chatcmpl-${response.headers.get("x-request-id")}`);
});

test("a chat streams: role first, then text as it comes, a finish, usage where asked, and [DONE]", async () => {
  await using gateway = await startTestGateway(scriptedDispatcher(say("Hel", "lo", "!")));
  const response = await gateway.post("/v1/chat/completions", {
    ...hello,
    stream: true,
    stream_options: { include_usage: true },
  });
  expect(response.status).toBe(200);
  expect(response.headers.get("content-type")).toContain("text/event-stream");
  const events = (await response.text()).split("\n\n").filter((event) => event !== "");
  expect(events.at(-1)).toBe("data: [DONE]");
  const chunks = events.slice(0, -1).map((event) => JSON.parse(event.slice("data: ".length)));
  expect(chunks[0].choices[0].delta).toEqual({ role: "assistant", content: "", refusal: null });
  expect(chunks.slice(1, 4).map((chunk) => chunk.choices[0].delta.content)).toEqual(["Hel", "lo", "!"]);
  expect(chunks[4].choices[0]).toMatchObject({ delta: {}, finish_reason: "stop" });
  expect(chunks[5]).toMatchObject({ choices: [], usage: { completion_tokens: 7 } });
  expect(chunks.slice(0, 5).every((chunk) => chunk.usage === null)).toBe(true);
});
