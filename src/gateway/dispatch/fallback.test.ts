import { afterEach, describe, expect, it } from "vitest";
import { closeFleets, fleet } from "../../../test/support/fleet.ts";
import { preparedRequest } from "../../../test/support/prepared.ts";
import { collect, tokensOf } from "../../../test/support/requests.ts";
import { answers, finish, token } from "../../../test/support/scripted-backend.ts";
import { type FallbackRule, fallbackRules } from "../../config/schema.ts";
import { SluiceError } from "../../errors.ts";
import { classify, type FailureKind, mayLeavePool } from "./fallback.ts";

const never = new AbortController().signal;
afterEach(closeFleets);

const failure = (status: number, code: string, retryable = status >= 429) =>
  new SluiceError({ status, type: "server_error", code, message: "x", retryable });

const defaults: readonly FallbackRule[] = fallbackRules.filter((rule) => rule !== "rate_limit");

/** Failure, what it is, the rules of which each alone lets it leave the pool. */
const table: ReadonlyArray<readonly [SluiceError, FailureKind, readonly FallbackRule[]]> = [
  [failure(504, "backend_timeout"), "timeout", ["timeout"]],
  [failure(504, "backend_timeout", false), "spent", []],
  [failure(429, "upstream_rate_limited"), "rate_limit", ["overload", "rate_limit"]],
  [failure(503, "queue_full"), "overload", ["overload"]],
  [failure(503, "draining"), "overload", ["overload"]],
  [failure(503, "backend_overloaded"), "overload", ["overload"]],
  [failure(503, "upstream_quota"), "overload", ["overload"]],
  [failure(502, "backend_error"), "5xx", ["5xx"]],
  [failure(502, "backend_error", false), "5xx", []],
  [failure(502, "upstream_auth"), "5xx", ["5xx"]],
  [failure(502, "upstream_not_found"), "5xx", ["5xx"]],
  [failure(503, "backend_unreachable"), "connect", ["connect"]],
  [failure(503, "backend_stream_broken"), "connect", ["connect"]],
  [failure(503, "no_backend"), "unavailable", ["timeout", "overload", "5xx", "connect"]],
  [failure(400, "context_length_exceeded"), "context_length_exceeded", ["context_length_exceeded"]],
  [failure(400, "context_length_exceeded", true), "context_length_exceeded", ["context_length_exceeded"]],
  [failure(400, "capability_missing", true), "capability_missing", ["capability_missing"]],
  [failure(400, "content_policy_violation"), "content_policy", []],
  [failure(422, "bad_value"), "other", []],
  [failure(499, "cancelled", false), "other", []],
];

describe("a failure may lead to the next pool", () => {
  it.each(table.map((row) => [`${row[0].status} ${row[0].code}`, ...row] as const))(
    "%s by its own rules only",
    (_, error, kind, rules) => {
      expect(classify(error)).toBe(kind);
      expect(fallbackRules.filter((rule) => mayLeavePool(error, [rule])).toSorted()).toEqual(rules.toSorted());
      expect(mayLeavePool(error, [])).toBe(false);
      expect(mayLeavePool(error, defaults)).toBe(rules.length > 0);
    },
  );

  it("by its status where that is listed, and never a refusal for content or when the time is over", () => {
    expect(mayLeavePool(failure(422, "bad_value"), [422])).toBe(true);
    expect(mayLeavePool(failure(502, "backend_error", false), [502])).toBe(true);
    expect(mayLeavePool(failure(422, "bad_value"), [404])).toBe(false);
    expect(mayLeavePool(failure(400, "content_policy_violation"), [400, ...defaults])).toBe(false);
    expect(mayLeavePool(failure(504, "backend_timeout", false), [504, ...defaults])).toBe(false);
  });
});

describe("a model's rules", () => {
  const pools = { east: ["http://a:1"], west: ["http://b:1"] };
  const withRules = async (on: readonly unknown[], error: () => Error) => {
    const world = await fleet(pools, { retry: { attempts: 1 } }, undefined, { fallback: { on } });
    world.backend("east/a:1").script = () => answers(error());
    world.backend("west/b:1").script = () => answers(token, finish);
    const run = () => collect(world.dispatcher.dispatch(preparedRequest(), 0, never));
    return { ...world, run };
  };

  it("keep a failure that they do not list with the caller", async () => {
    const { run, asked } = await withRules(["timeout"], () => failure(502, "backend_error"));
    await expect(run()).rejects.toMatchObject({ code: "backend_error" });
    expect(asked()).toEqual(["east/a:1"]);
  });

  it("let one that they list through, and nothing else changes", async () => {
    const { run, asked } = await withRules(["5xx"], () => failure(502, "backend_error"));
    expect(tokensOf(await run())).toEqual([7]);
    expect(asked()).toEqual(["east/a:1", "west/b:1"]);
  });

  it("that list nothing tell the caller when the first pool has nobody", async () => {
    const { run, asked, backend, clock } = await withRules([], () => failure(502, "backend_error"));
    backend("east/a:1").ready = false;
    await clock.advance(3_000);
    await expect(run()).rejects.toMatchObject({ status: 503, code: "no_backend" });
    expect(asked()).toEqual([]);
  });

  it("hold for an answer that breaks in the middle as well: it waits for its own pool", async () => {
    const { clock, run, backend, asked } = await withRules(["overload"], () => failure(503, "x"));
    let attempts = 0;
    backend("east/a:1").script = () =>
      attempts++ === 0
        ? answers(token, failure(503, "backend_stream_broken"))
        : answers({ type: "tokens", ids: [8] }, finish);
    const answer = run();
    await clock.advance(5_000);
    expect(tokensOf(await answer)).toEqual([7, 8]);
    expect(asked()).toEqual(["east/a:1", "east/a:1"]);
  });

  it("of statuses take a refusal that is the provider's own on to the next", async () => {
    const { run } = await withRules([422], () => failure(422, "bad_value", false));
    expect(tokensOf(await run())).toEqual([7]);
  });
});

describe("pools of different context", () => {
  const prompt = (length: number, maxNewTokens: number) => ({
    promptIds: Uint32Array.from({ length }, (_, index) => index + 1),
    maxNewTokens,
  });
  /** `near` holds 100 tokens, `far` 1,000. */
  const two = async (model: Record<string, unknown> = {}) => {
    const world = await fleet({ near: ["http://a:1"], far: ["http://b:1"] }, {}, undefined, model);
    for (const each of world.byId.values()) each.ready = false;
    await world.clock.advance(3_000);
    for (const each of world.byId.values()) {
      each.ready = true;
      each.script = (request) =>
        answers({ type: "tokens", ids: Array.from({ length: request.maxNewTokens }, () => 7) }, finish);
    }
    world.backend("near/a:1").contextLength = 100;
    world.backend("far/b:1").contextLength = 1_000;
    await world.clock.advance(3_000);
    const run = (changes: Parameters<typeof preparedRequest>[0]) =>
      collect(world.dispatcher.dispatch(preparedRequest(changes), 0, never));
    return { ...world, run };
  };

  it("offer the longest of them to a prompt", async () => {
    const { dispatcher, backend, clock } = await two();
    expect(dispatcher.info("m")).toMatchObject({ contextLength: 1_000, kvTokens: 1_000 });
    // It is away, not gone: a long prompt is worth coming back with.
    backend("far/b:1").ready = false;
    await clock.advance(3_000);
    expect(dispatcher.info("m")).toMatchObject({ contextLength: 1_000 });
  });

  it("pass a prompt over that is too long for the first, without an attempt", async () => {
    const { run, asked } = await two();
    const events = await run(prompt(200, 8));
    expect(asked()).toEqual(["far/b:1"]);
    expect(tokensOf(events)).toHaveLength(8);
  });

  it("hold an answer to what is left in the context of the one that gives it", async () => {
    const { run, backend } = await two();
    await run(prompt(90, 50));
    expect(backend("near/a:1").requests.map(({ maxNewTokens }) => maxNewTokens)).toEqual([10]);
    await run(prompt(200, 50));
    expect(backend("far/b:1").requests.map(({ maxNewTokens }) => maxNewTokens)).toEqual([50]);
  });

  it("say that a prompt is too long only where nobody with room is merely away", async () => {
    const { run, backend, clock } = await two();
    await expect(run(prompt(1_000, 8))).rejects.toMatchObject({ status: 400, code: "context_length_exceeded" });
    backend("far/b:1").ready = false;
    await clock.advance(3_000);
    await expect(run(prompt(200, 8))).rejects.toMatchObject({ status: 503, code: "no_backend" });
  });

  it("refuse it where the model's rules say so", async () => {
    const { run, asked } = await two({ fallback: { on: ["5xx"] } });
    await expect(run(prompt(200, 8))).rejects.toMatchObject({ status: 400, code: "context_length_exceeded" });
    expect(asked()).toEqual([]);
  });

  it("do not shorten an answer that was begun where there was more room: it goes on where it fits", async () => {
    const { run, backend, clock, asked } = await two();
    let attempts = 0;
    backend("near/a:1").script = () => answers(failure(503, "backend_unreachable"));
    backend("far/b:1").script = (request) =>
      attempts++ === 0
        ? answers({ type: "tokens", ids: [7, 7] }, failure(503, "backend_stream_broken"))
        : answers({ type: "tokens", ids: Array.from({ length: request.maxNewTokens }, () => 8) }, finish);
    const answer = run(prompt(90, 50));
    await clock.advance(5_000);
    expect(tokensOf(await answer)).toHaveLength(50);
    expect(asked().filter((id) => id === "far/b:1")).toHaveLength(2);
    expect(asked().filter((id) => id === "near/a:1").length).toBeLessThanOrEqual(2);
  });

  it("do not lengthen one either", async () => {
    const { run, backend } = await two();
    backend("near/a:1").script = () =>
      answers({ type: "tokens", ids: [7, 7, 7] }, failure(503, "backend_stream_broken"));
    expect(tokensOf(await run(prompt(90, 50)))).toHaveLength(10);
    expect(backend("far/b:1").requests.map(({ maxNewTokens }) => maxNewTokens)).toEqual([7]);
  });
});
