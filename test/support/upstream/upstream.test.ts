import { request } from "undici";
import { afterEach, expect, it } from "vitest";
import { startUpstream, type Upstream, type UpstreamOptions } from "./server.ts";
import { canonicalAnswer } from "./wire.ts";

const open: Upstream[] = [];
afterEach(async () => {
  for (const upstream of open.splice(0)) await upstream.close();
});

async function start(options: UpstreamOptions = {}): Promise<Upstream> {
  const upstream = await startUpstream({ timings: { tokenMs: 0 }, ...options });
  open.push(upstream);
  return upstream;
}

async function post(upstream: Upstream, body: Record<string, unknown>, path = "/chat/completions") {
  const { statusCode, body: answer } = await request(upstream.url + path, {
    method: "POST",
    body: JSON.stringify(body),
  });
  return { status: statusCode, text: await answer.text() };
}
const messages = [{ role: "user", content: "?" }];

it("its answer has sixty words", () => expect(canonicalAnswer.split(" ")).toHaveLength(60));

it("answers whole to those who do not ask for a stream", async () => {
  const upstream = await start();
  const chat = await post(upstream, { model: "fb-ok", messages });
  expect(JSON.parse(chat.text)).toMatchObject({
    object: "chat.completion",
    choices: [{ message: { role: "assistant", content: canonicalAnswer }, finish_reason: "stop" }],
    usage: { completion_tokens: 60 },
  });
  const text = await post(upstream, { model: "openai/fb-ok", prompt: "Say it." }, "/completions");
  expect(JSON.parse(text.text)).toMatchObject({ object: "text_completion", choices: [{ text: canonicalAnswer }] });
});

it.each(["fb-s08-stream-cut", "fb-s05-reset", "x-reset-after-5"])("%s breaks those as well", async (model) => {
  await expect(post(await start(), { model, messages })).rejects.toThrow();
});

it.each([
  ["fb-s10-malformed-chunk", 200],
  ["x-error-bare", 500],
])("%s gives them no answer", async (model, status) => {
  const answer = await post(await start(), { model, messages });
  expect(answer.status).toBe(status);
  expect(answer.text).not.toContain("help anyone.");
});

it("tells usage in a stream only to those who ask", async () => {
  const upstream = await start();
  const plain = await post(upstream, { model: "fb-ok", messages, stream: true });
  expect(plain.text).not.toContain("usage");
  const asked = await post(upstream, {
    model: "fb-ok",
    messages,
    stream: true,
    stream_options: { include_usage: true },
  });
  expect(asked.text).toContain('"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":60');
});

it("goes on from a part of its answer", async () => {
  const upstream = await start();
  const partial = canonicalAnswer.slice(0, 80);
  const chat = await post(upstream, {
    model: "fb-ok",
    messages: [...messages, { role: "assistant", content: partial }],
  });
  expect(JSON.parse(chat.text).choices[0].message.content).toBe(canonicalAnswer.slice(80));
  const text = await post(upstream, { model: "fb-ok", prompt: `Say it. ${partial}` }, "/completions");
  expect(JSON.parse(text.text).choices[0].text).toBe(canonicalAnswer.slice(80));
});

it("takes only the fields that such an endpoint takes", async () => {
  const body = { model: "fb-ok", messages, top_k: 5 };
  expect(await post(await start(), body)).toMatchObject({ status: 400, text: expect.stringContaining("'top_k'") });
  expect(await post(await start({ extensions: true }), body)).toMatchObject({ status: 200 });
});

it("counts the attempts on each model, and forgets them when asked", async () => {
  const upstream = await start();
  for (const model of ["fb-s03-a", "fb-ok", "fb-s03-a"]) await post(upstream, { model, messages });
  expect(upstream.attemptsOn("fb-s03-a").map(({ number }) => number)).toEqual([1, 2]);
  expect(upstream.attempts.map(({ at }) => at)).toEqual(
    upstream.attempts.map(({ at }) => at).toSorted((a, b) => a - b),
  );
  upstream.reset();
  expect((await post(upstream, { model: "fb-s03-a", messages })).status).toBe(500);
  expect(upstream.attempts).toHaveLength(1);
});
