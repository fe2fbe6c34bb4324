import { Ajv } from "ajv";
import { afterEach, beforeAll, describe, expect, it } from "vitest";
import type { DispatchEvent } from "../../src/gateway/request.ts";
import { createGrammarCompiler } from "../../src/grammar/compiler.ts";
import type { Tokenizer } from "../../src/tokenizer/index.ts";
import { openTokenizer } from "../../src/tokenizer/node.ts";
import { startNativeDaemon } from "../support/daemons.ts";
import { collect, tokensOf } from "../support/requests.ts";
import { smollm2 } from "../support/smollm2.ts";
import { backendOf, type Cluster, cachedOf, promptRequest, startCluster } from "./cluster.ts";

const never = new AbortController().signal;

let model: string;
let tokenizer: Tokenizer;
beforeAll(async () => {
  model = await smollm2();
  tokenizer = await openTokenizer(`gguf:${model}`);
});

const clusters: Cluster[] = [];
afterEach(async () => {
  for (const each of clusters.splice(0)) await each.close();
});

async function cluster(): Promise<Cluster> {
  const started = await startCluster(() => startNativeDaemon(model), tokenizer.vocabulary.vocabularyHash);
  clusters.push(started);
  return started;
}

const subjects = ["rivers", "bridges", "clocks", "harbours", "violins", "orchards"];
const question = (subject: string) =>
  `I am writing a long letter to my sister about ${subject}. She has never been fond of ${subject}, but she likes a good
story, and she has asked me more than once why anyone would spend a whole life on them. I want to give her an honest
answer. Tell me three things about ${subject} that she may not have heard.`;

interface Message {
  readonly role: "user" | "assistant";
  readonly content: string;
}
const encode = (messages: readonly Message[]) =>
  tokenizer.encodeChat({ messages: [...messages], addGenerationPrompt: true });

/** The one message of a first turn. */
const ask = (subject: string): Message[] => [{ role: "user", content: question(subject) }];

/** Greedy, and long enough to be caught in the middle. */
const request = (messages: readonly Message[], maxNewTokens: number) =>
  promptRequest(encode(messages), { maxNewTokens, stopIds: tokenizer.vocabulary.stopIds });

describe("three daemons with the real model", () => {
  it("the second turn of a conversation lands on the daemon that holds its prefix", async () => {
    const { dispatcher } = await cluster();
    const talks = subjects.slice(0, 3);
    const first = await Promise.all(
      talks.map((subject) => collect(dispatcher.dispatch(request(ask(subject), 12), 0, never))),
    );
    expect(new Set(first.map(backendOf)).size).toBe(3);
    for (const [index, subject] of talks.entries()) {
      const events = first[index] ?? [];
      const answer = tokenizer.decode(tokensOf(events));
      const second = [
        ...ask(subject),
        { role: "assistant", content: answer },
        { role: "user", content: "Go on." },
      ] as const;
      const again = await collect(dispatcher.dispatch(request(second, 4), 0, never));
      expect(backendOf(again)).toBe(backendOf(events));
      expect(cachedOf(again)).toBeGreaterThanOrEqual(Math.floor(encode(ask(subject)).length / 16) * 16);
    }
  });

  it("a schema's grammar reaches the daemons by itself, and every answer obeys it", async () => {
    const compiler = createGrammarCompiler({ vocabulary: tokenizer.vocabulary, children: 1 });
    const schema = {
      type: "object",
      properties: { kind: { enum: ["old", "new"] }, parts: { type: "integer", minimum: 1, maximum: 99 } },
      required: ["kind", "parts"],
      additionalProperties: false,
    };
    const source = { kind: "json_schema", schema, strict: true } as const;
    const artifact = await compiler.compile(source, never).finally(() => compiler.close());
    const { dispatcher } = await cluster();
    const answers = await Promise.all(
      subjects.map(async (subject) => {
        const constrained = { ...request(ask(subject), 64), grammar: { artifact, source } };
        const events = await collect(dispatcher.dispatch(constrained, 0, never));
        return { finish: events.at(-1), value: JSON.parse(tokenizer.decode(tokensOf(events))) };
      }),
    );
    const isValid = new Ajv().compile(schema);
    for (const { finish, value } of answers) {
      expect(finish).toMatchObject({ type: "finish", reason: "stop" });
      expect(isValid(value)).toBe(true);
    }
  });

  it("a daemon killed before the first token costs its callers nothing: they get the very same tokens", async () => {
    const { dispatcher, daemonOf } = await cluster();
    const alone = await collect(dispatcher.dispatch(request(ask("lanterns"), 16), 0, never));
    let killed: Promise<void> | undefined;
    let victim = "";
    const all = await Promise.all(
      subjects.map(async (subject) => {
        const events: DispatchEvent[] = [];
        for await (const event of dispatcher.dispatch(request(ask(subject), 16), 0, never)) {
          events.push(event);
          if (event.type === "accepted" && killed === undefined) {
            victim = backendOf(events);
            killed = daemonOf(victim).kill();
          }
        }
        return events;
      }),
    );
    await killed;
    expect(all.filter((events) => events.filter(({ type }) => type === "attempt").length > 1).length).toBeGreaterThan(
      0,
    );
    for (const [index, events] of all.entries()) {
      expect(events.at(-1)).toMatchObject({ type: "finish" });
      expect(backendOf(events)).not.toBe(victim);
      const quiet = await collect(dispatcher.dispatch(request(ask(subjects[index] ?? ""), 16), 0, never));
      expect(tokensOf(events)).toEqual(tokensOf(quiet));
    }
    expect(tokensOf(alone)).toHaveLength(16);
  });

  it("a daemon killed later costs its callers nothing: drawn tokens, penalties and log probabilities go on as well", async () => {
    const { dispatcher, daemonOf } = await cluster();
    const drawn = (subject: string, index: number) => {
      const base = request(ask(subject), 32);
      const sampling = {
        ...base.sampling,
        temperature: 0.9,
        seed: 11 * index,
        repetitionPenalty: 1.1,
        presencePenalty: 0.3,
      };
      return index % 2 === 0 ? base : { ...base, sampling, logprobs: 2 };
    };
    const logprobsOf = (events: readonly DispatchEvent[]) =>
      events.flatMap((event) => (event.type === "tokens" ? (event.logprobs ?? []) : []));
    const seen = subjects.map(() => ({ backend: "", tokens: 0 }));
    let killed: Promise<void> | undefined;
    let victim = "";
    const answers = await Promise.all(
      seen.map(async (state, index) => {
        const events: DispatchEvent[] = [];
        for await (const event of dispatcher.dispatch(drawn(subjects[index] ?? "", index), 0, never)) {
          events.push(event);
          if (event.type === "attempt") state.backend = event.backend;
          if (event.type === "tokens") state.tokens += event.ids.length;
          if (state.tokens === 3 + index && killed === undefined) {
            victim = state.backend;
            killed = daemonOf(victim).kill();
          }
        }
        return events;
      }),
    );
    await killed;
    expect(seen.every(({ backend }) => backend !== victim)).toBe(true);
    expect(answers.some((events) => events.filter(({ type }) => type === "attempt").length > 1)).toBe(true);
    for (const [index, events] of answers.entries()) {
      const unbroken = await collect(dispatcher.dispatch(drawn(subjects[index] ?? "", index), 0, never));
      expect(tokensOf(events)).toEqual(tokensOf(unbroken));
      expect(logprobsOf(events)).toEqual(logprobsOf(unbroken));
      expect(events.at(-1)).toMatchObject({ type: "finish", usage: { completionTokens: usageOf(unbroken) } });
    }
  });
});

function usageOf(events: readonly DispatchEvent[]): number | undefined {
  return events.flatMap((event) => (event.type === "finish" ? event.usage.completionTokens : []))[0];
}
