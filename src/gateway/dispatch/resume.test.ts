import { afterEach, describe, expect, it } from "vitest";
import { preparedRequest } from "../../../test/support/prepared.ts";
import { collect, tokensOf } from "../../../test/support/requests.ts";
import {
  accepted,
  answers,
  type Script,
  type ScriptedBackend,
  silence,
} from "../../../test/support/scripted-backend.ts";
import type { GenerationEvent, GenerationRequest } from "../../backends/backend.ts";
import { SluiceError, unavailable } from "../../errors.ts";
import type { DispatchEvent, PreparedRequest } from "../request.ts";
import { closeFleets, fleet } from "../../../test/support/fleet.ts";
import { byteTokenizer } from "../testing/tokenizer.ts";
import type { Dispatcher } from "./dispatch.ts";

const never = new AbortController().signal;
const codec = await byteTokenizer();
afterEach(closeFleets);

const run = (dispatcher: Dispatcher, changes: Partial<PreparedRequest> = {}) =>
  collect(dispatcher.dispatch(preparedRequest(changes), 0, never));
const brokeOff = () => unavailable("backend_stream_broken", "broke");
const ended = (request: GenerationRequest, completionTokens: number): GenerationEvent => ({
  type: "finish",
  reason: "length",
  usage: { promptTokens: request.promptIds.length, cachedTokens: 32, completionTokens },
});

/** The n-th token of its answers is 100 + n, whoever gave those before. Breaks after `tokens` of this attempt, if told so. */
const counting = (tokens = Number.POSITIVE_INFINITY, failure: () => Error = brokeOff): Script =>
  async function* (request) {
    yield accepted;
    for (let n = 0; n < request.maxNewTokens; n++) {
      if (n >= tokens) throw failure();
      yield { type: "tokens", ids: [100 + request.generatedIds.length + n] };
    }
    if (tokens === request.maxNewTokens) throw failure();
    yield ended(request, request.maxNewTokens);
  };
const counted = [100, 101, 102, 103, 104, 105, 106, 107];

/** Text in pieces; a backend of text goes on behind `generated` where it takes it. */
const telling = (pieces: readonly string[], breaksAfter = Number.POSITIVE_INFINITY): Script =>
  async function* (request) {
    const before = request.text.generated ?? "";
    let sent = "";
    for (const [index, piece] of pieces.entries()) {
      if (index >= breaksAfter) throw brokeOff();
      sent += piece;
      if (before.startsWith(sent)) continue;
      yield { type: "text", delta: piece };
    }
    yield { type: "finish", reason: "stop", usage: { promptTokens: 9, cachedTokens: 0, completionTokens: 4 } };
  };
const asText = (backend: ScriptedBackend, assistantPrefill = false) => {
  backend.capabilities = { ...backend.capabilities, tokenIds: false, assistantPrefill };
};
const textOf = (events: readonly DispatchEvent[]) =>
  events.map((event) => (event.type === "text" ? event.delta : "")).join("");
const attemptsOf = (events: readonly DispatchEvent[]) =>
  events.flatMap((event) => (event.type === "attempt" ? event.backend : []));

describe("an answer that breaks off on a daemon", () => {
  it.each([
    ["its connection breaks", brokeOff],
    ["says that it failed", () => unavailable("backend_error", "engine_failed")],
  ])("goes on elsewhere as if nothing had happened when the backend %s", async (_, failure) => {
    const { dispatcher, byId, ends } = await fleet();
    let attempts = 0;
    for (const each of byId.values()) {
      each.script = (request, signal) => counting(attempts++ < 2 ? 3 : undefined, failure)(request, signal);
    }
    const events = await run(dispatcher);
    expect(tokensOf(events)).toEqual(counted);
    expect(new Set(attemptsOf(events)).size).toBe(3);
    expect(events.filter(({ type }) => type === "accepted")).toHaveLength(1);
    expect(events.at(-1)).toEqual({
      type: "finish",
      reason: "length",
      usage: { promptTokens: 40, cachedTokens: 0, completionTokens: 8 },
    });
    expect(ends).toEqual([{ attempts: 3, code: undefined }]);
  });

  it("is asked for no more than is missing, with the same seed and under an id of its own", async () => {
    const { dispatcher, byId } = await fleet({ east: ["http://a:1", "http://b:1"] });
    let attempts = 0;
    for (const each of byId.values())
      each.script = (request, signal) => counting(attempts++ < 1 ? 5 : 99)(request, signal);
    await run(dispatcher);
    const [first, second] = [...byId.values()]
      .flatMap(({ requests }) => requests)
      .toSorted((a, b) => b.maxNewTokens - a.maxNewTokens);
    expect(Array.from(second?.generatedIds ?? [])).toEqual(counted.slice(0, 5));
    expect([first?.maxNewTokens, second?.maxNewTokens]).toEqual([8, 3]);
    expect(second?.sampling).toEqual(first?.sampling);
    expect(second?.id).not.toBe(first?.id);
  });

  it("falls silent: the deadline between tokens moves it", async () => {
    const { dispatcher, clock, byId } = await fleet();
    let attempts = 0;
    for (const each of byId.values()) {
      each.script = async function* (request, signal) {
        if (attempts++ > 0) return yield* counting()(request, signal);
        yield { type: "tokens", ids: [100] };
        yield* silence(signal);
      };
    }
    const answer = run(dispatcher);
    await clock.advance(5_000);
    expect(tokensOf(await answer)).toEqual(counted);
  });

  it("behind its last token is complete without another backend", async () => {
    const { dispatcher, all, asked } = await fleet();
    all(counting(8));
    const events = await run(dispatcher);
    expect(tokensOf(events)).toEqual(counted);
    expect(events.at(-1)).toMatchObject({ type: "finish", reason: "length", usage: { completionTokens: 8 } });
    expect(asked()).toHaveLength(1);
  });

  it("moves on over pools, and comes back when nobody else is there and a probe has found it well", async () => {
    const { dispatcher, clock, backend, asked } = await fleet({ east: ["http://a:1"], west: ["http://b:1"] });
    let attempts = 0;
    backend("east/a:1").script = (request, signal) => counting(attempts++ < 1 ? 2 : 99)(request, signal);
    backend("west/b:1").script = counting(2);
    const answer = run(dispatcher);
    await clock.advance(3_000);
    expect(tokensOf(await answer)).toEqual(counted);
    expect(asked()).toEqual(["east/a:1", "east/a:1", "west/b:1"]);
  });

  it("waits for a backend as long as the model's configuration says, then ends with what broke it", async () => {
    const { dispatcher, clock, backend } = await fleet({ east: ["http://a:1"] });
    const only = backend("east/a:1");
    only.script = (request, signal) => {
      only.ready = false;
      return counting(3)(request, signal);
    };
    let end: unknown;
    const answer = run(dispatcher).catch((error: unknown) => {
      end = error;
    });
    await clock.advance(9_900);
    expect(end).toBeUndefined();
    await clock.advance(200);
    await answer;
    expect(end).toMatchObject({ code: "backend_stream_broken" });
  });

  it("is taken on as soon as a backend is there again", async () => {
    const { dispatcher, clock, backend } = await fleet({ east: ["http://a:1"] });
    const only = backend("east/a:1");
    let attempts = 0;
    only.script = (request, signal) => {
      only.ready = attempts++ > 0;
      return counting(attempts > 1 ? 99 : 3)(request, signal);
    };
    const answer = run(dispatcher);
    await clock.advance(5_000);
    only.ready = true;
    await clock.advance(2_500);
    expect(tokensOf(await answer)).toEqual(counted);
  });

  it("breaks again and again: the number of breaks is bounded", async () => {
    const { dispatcher, clock, all, asked } = await fleet();
    all(counting(1));
    const answer = expect(run(dispatcher, { maxNewTokens: 100 })).rejects.toMatchObject({
      code: "backend_stream_broken",
    });
    await clock.advance(60_000);
    await answer;
    expect(asked()).toHaveLength(9);
  });

  it("with an error that no other backend can mend ends with it", async () => {
    const { dispatcher, all, asked } = await fleet();
    const refusal = {
      status: 400,
      type: "invalid_request_error",
      code: "content_policy_violation",
      message: "no",
    } as const;
    all(counting(2, () => new SluiceError(refusal)));
    await expect(run(dispatcher)).rejects.toMatchObject({ code: "content_policy_violation" });
    expect(asked()).toHaveLength(1);
  });

  it("whose caller leaves while it waits is forgotten", async () => {
    const { dispatcher, clock, backend } = await fleet({ east: ["http://a:1"] });
    const only = backend("east/a:1");
    only.script = (request, signal) => {
      only.ready = false;
      return counting(3)(request, signal);
    };
    const control = new AbortController();
    const answer = expect(collect(dispatcher.dispatch(preparedRequest(), 0, control.signal))).rejects.toMatchObject({
      status: 499,
    });
    await clock.advance(1_000);
    control.abort();
    await answer;
  });
});

describe("an answer that breaks off between backends of different kinds", () => {
  const pieces = ["Once ", "upon ", "a ", "time."];
  const story = pieces.join("");

  it("goes on behind its text where the backend takes an assistant prefill", async () => {
    const { dispatcher, backend } = await fleet({ east: ["http://a:1"], west: ["http://b:1"] }, {}, codec);
    for (const id of ["east/a:1", "west/b:1"]) asText(backend(id), true);
    backend("east/a:1").script = telling(pieces, 2);
    backend("west/b:1").script = telling(pieces);
    const events = await run(dispatcher, { maxNewTokens: 64 });
    expect(textOf(events)).toBe(story);
    expect(backend("west/b:1").requests[0]?.text.generated).toBe("Once upon ");
    // The second backend's own figures tell of its part only.
    expect(events.at(-1)).toMatchObject({ usage: { promptTokens: 40, estimated: true } });
  });

  it("is told anew where it takes none, and shown from where it was cut", async () => {
    const { dispatcher, backend } = await fleet({ east: ["http://a:1"], west: ["http://b:1"] }, {}, codec);
    for (const id of ["east/a:1", "west/b:1"]) asText(backend(id));
    backend("east/a:1").script = telling(pieces, 2);
    backend("west/b:1").script = telling(["Once up", "on a time."]);
    const events = await run(dispatcher);
    expect(textOf(events)).toBe(story);
    expect(backend("west/b:1").requests[0]?.text.generated).toBeUndefined();
  });

  it("is told anew by a backend that only says it takes a prefill, on the same attempt's terms", async () => {
    const { dispatcher, backend } = await fleet(
      { east: ["http://a:1"], west: ["http://b:1"] },
      { retry: { attempts: 1 } },
      codec,
    );
    for (const id of ["east/a:1", "west/b:1"]) asText(backend(id), true);
    backend("east/a:1").script = telling(pieces, 2);
    backend("west/b:1").script = (request, signal) =>
      request.text.generated === undefined
        ? telling(pieces)(request, signal)
        : answers(
            new SluiceError({
              status: 502,
              type: "server_error",
              code: "continuation_refused",
              message: "x",
              retryable: true,
            }),
          );
    expect(textOf(await run(dispatcher))).toBe(story);
  });

  it("that is told otherwise the second time ends with an error, and nothing of the other answer is shown", async () => {
    const { dispatcher, clock, backend } = await fleet({ east: ["http://a:1"], west: ["http://b:1"] }, {}, codec);
    for (const id of ["east/a:1", "west/b:1"]) asText(backend(id));
    backend("east/a:1").script = telling(pieces, 2);
    backend("west/b:1").script = telling(["Once ", "there was another."]);
    const seen: DispatchEvent[] = [];
    const answer = (async () => {
      for await (const event of dispatcher.dispatch(preparedRequest(), 0, never)) seen.push(event);
    })();
    const broken = expect(answer).rejects.toMatchObject({ code: "backend_stream_broken" });
    await clock.advance(30_000);
    await broken;
    expect(textOf(seen)).toBe("Once upon ");
  });

  it("begins anew where its caller has seen nothing yet", async () => {
    const { dispatcher, backend } = await fleet({ east: ["http://a:1"], west: ["http://b:1"] }, {}, codec);
    for (const id of ["east/a:1", "west/b:1"]) asText(backend(id));
    backend("east/a:1").script = telling(pieces, 2);
    backend("west/b:1").script = telling(["Quite ", "another."]);
    const events = await run(dispatcher, { held: true });
    const restart = events.findIndex(({ type }) => type === "restart");
    expect(textOf(events.slice(0, restart))).toBe("Once upon ");
    expect(textOf(events.slice(restart))).toBe("Quite another.");
    expect(events.at(-1)).toMatchObject({ usage: { promptTokens: 9, completionTokens: 4 } });
  });

  it("begins anew also for a stream, where the model's streams are held until they are whole", async () => {
    const model = { resume: { hold: true } };
    const { dispatcher, backend } = await fleet({ east: ["http://a:1"], west: ["http://b:1"] }, {}, codec, model);
    for (const id of ["east/a:1", "west/b:1"]) asText(backend(id));
    backend("east/a:1").script = telling(pieces, 2);
    backend("west/b:1").script = telling(["Quite ", "another."]);
    const events = await run(dispatcher);
    expect(textOf(events)).toBe("Quite another.");
    expect(events.map(({ type }) => type)).toEqual(["attempt", "attempt", "text", "text", "finish"]);
  });

  it("goes from tokens to text and back to tokens", async () => {
    const { dispatcher, backend } = await fleet(
      { east: ["http://a:1"], west: ["http://b:1"], spare: ["http://c:1"] },
      {},
      codec,
    );
    asText(backend("west/b:1"), true);
    const bytes = (text: string) => Array.from(new TextEncoder().encode(text));
    backend("east/a:1").script = () => answers({ type: "tokens", ids: bytes("Once up") }, brokeOff());
    backend("west/b:1").script = () => answers({ type: "text", delta: "on a " }, brokeOff());
    backend("spare/c:1").script = (request) => answers({ type: "tokens", ids: bytes("time.") }, ended(request, 5));
    const events = await run(dispatcher, { maxNewTokens: 64 });
    expect(backend("west/b:1").requests[0]?.text.generated).toBe("Once up");
    expect(Buffer.from(backend("spare/c:1").requests[0]?.generatedIds ?? []).toString()).toBe("Once upon a ");
    expect(events.at(-1)).toMatchObject({ usage: { promptTokens: 40, completionTokens: 17 } });
  });

  it("forgets a character that tokens only began when text goes on in its place", async () => {
    const { dispatcher, backend } = await fleet(
      { east: ["http://a:1"], west: ["http://b:1"], spare: ["http://c:1"] },
      {},
      codec,
    );
    asText(backend("west/b:1"), true);
    const bytes = (text: string) => Array.from(new TextEncoder().encode(text));
    backend("east/a:1").script = () => answers({ type: "tokens", ids: [...bytes("é"), 0xc3] }, brokeOff());
    backend("west/b:1").script = () => answers({ type: "text", delta: "ü" }, brokeOff());
    backend("spare/c:1").script = (request) => answers({ type: "tokens", ids: bytes("!") }, ended(request, 1));
    await run(dispatcher, { maxNewTokens: 64 });
    expect(backend("west/b:1").requests[0]?.text.generated).toBe("é");
    expect(Buffer.from(backend("spare/c:1").requests[0]?.generatedIds ?? []).toString()).toBe("éü");
  });

  it("is not continued where a call was begun", async () => {
    const { dispatcher, clock, backend } = await fleet({ east: ["http://a:1"], west: ["http://b:1"] }, {}, codec);
    for (const id of ["east/a:1", "west/b:1"]) asText(backend(id), true);
    backend("east/a:1").script = () =>
      answers({ type: "text", delta: "", toolCalls: [{ index: 0, id: "c", name: "f", arguments: "{" }] }, brokeOff());
    const answer = expect(run(dispatcher)).rejects.toMatchObject({ code: "backend_stream_broken" });
    await clock.advance(30_000);
    await answer;
    expect(backend("west/b:1").requests).toHaveLength(0);
  });
});

describe("a backend of text", () => {
  it("is asked whatever vocabulary it has, and not for what it says it cannot do", async () => {
    const { dispatcher, backend, asked } = await fleet({ east: ["http://a:1"], west: ["http://b:1"] });
    for (const id of ["east/a:1", "west/b:1"]) {
      asText(backend(id));
      backend(id).script = telling(["Hi."]);
    }
    backend("west/b:1").vocabularyHash = "";
    backend("east/a:1").objection = () =>
      new SluiceError({
        status: 400,
        type: "invalid_request_error",
        code: "capability_missing",
        message: "It has no 'tools'.",
        retryable: true,
      });
    const events = await run(dispatcher);
    expect(textOf(events)).toBe("Hi.");
    expect(asked()).toEqual(["west/b:1"]);
    backend("west/b:1").objection = backend("east/a:1").objection;
    await expect(run(dispatcher)).rejects.toMatchObject({ status: 400, code: "capability_missing" });
    expect(asked()).toHaveLength(1);
  });
});
