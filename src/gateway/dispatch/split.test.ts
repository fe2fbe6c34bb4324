import { afterEach, describe, expect, it } from "vitest";
import { closeFleets, fleet } from "../../../test/support/fleet.ts";
import { preparedRequest } from "../../../test/support/prepared.ts";
import { collect } from "../../../test/support/requests.ts";
import { answers } from "../../../test/support/scripted-backend.ts";
import { unavailable } from "../../errors.ts";
import type { PreparedRequest } from "../request.ts";
import { inSplitOrder, sessionOf } from "./split.ts";

const never = new AbortController().signal;
afterEach(closeFleets);

const pools = ["east", "canary", "spare"].map((name) => ({ name }));
const first = (split: Record<string, number>, session: number) => inSplitOrder(pools, split, session)[0]?.name;
const sessions = Array.from({ length: 20_000 }, (_, index) => (index * 2_654_435_761) >>> 0);
const shareOf = (name: string, split: Record<string, number>) =>
  sessions.filter((session) => first(split, session) === name).length / sessions.length;

describe("pools that share the traffic", () => {
  it.each([
    ["nine to one", { east: 90, canary: 10 }, { east: 0.9, canary: 0.1, spare: 0 }],
    ["evenly", { east: 1, canary: 1 }, { east: 0.5, canary: 0.5, spare: 0 }],
    ["three ways", { east: 2, canary: 1, spare: 1 }, { east: 0.5, canary: 0.25, spare: 0.25 }],
    ["all to one", { east: 0, canary: 3 }, { east: 0, canary: 1, spare: 0 }],
  ])("get it by weight: %s", (_, split, shares) => {
    for (const [name, share] of Object.entries(shares)) expect(shareOf(name, split)).toBeCloseTo(share, 1.5);
  });

  it("are followed by the others in the order of the list", () => {
    for (const session of sessions.slice(0, 100)) {
      const names = inSplitOrder(pools, { canary: 1 }, session).map(({ name }) => name);
      expect(names).toEqual(["canary", "east", "spare"]);
    }
    expect(inSplitOrder(pools, undefined, 1)).toBe(pools);
    expect(inSplitOrder(pools, { gone: 1 }, 1).map(({ name }) => name)).toEqual(["east", "canary", "spare"]);
  });

  it("keep their sessions when weights change, but for those that must move", () => {
    const before = { east: 90, canary: 10 };
    const after = { east: 80, canary: 20 };
    let moved = 0;
    for (const session of sessions) {
      const was = first(before, session);
      const is = first(after, session);
      if (was === "canary") expect(is).toBe("canary");
      if (was !== is) moved++;
    }
    expect(moved / sessions.length).toBeCloseTo(0.1, 1.5);
  });
});

describe("a session", () => {
  const chat = (body: Record<string, unknown>, tenant = "t"): PreparedRequest =>
    preparedRequest({
      tenant: { name: tenant, models: undefined, priority: 0, weight: 1, salt: "s" },
      text: { kind: "chat", body },
    });
  const system = { role: "system", content: "You are kind." };
  const user = (content: unknown) => ({ role: "user", content });

  it("is a conversation: every later turn has the same, another opening another", () => {
    const opening = [system, user("Hello")];
    const turn = [...opening, { role: "assistant", content: "Hi!" }, user("And now?")];
    expect(sessionOf(chat({ messages: turn }))).toBe(sessionOf(chat({ messages: opening })));
    expect(sessionOf(chat({ messages: [system, user("Good day")] }))).not.toBe(sessionOf(chat({ messages: opening })));
    const parts = (text: string) => [system, user([{ type: "text", text }])];
    expect(sessionOf(chat({ messages: parts("a") }))).not.toBe(sessionOf(chat({ messages: parts("b") })));
  });

  it("is what the caller calls one", () => {
    const one = { messages: [user("a")], prompt_cache_key: "k" };
    const other = { messages: [user("b")], prompt_cache_key: "k" };
    expect(sessionOf(chat(one))).toBe(sessionOf(chat(other)));
    expect(sessionOf(chat({ ...one, prompt_cache_key: "l" }))).not.toBe(sessionOf(chat(one)));
    expect(sessionOf(chat({ messages: [user("a")], user: "u" }))).toBe(
      sessionOf(chat({ messages: [user("b")], user: "u" })),
    );
  });

  it("is nobody else's: another tenant's is another", () => {
    const body = { messages: [user("a")], user: "u" };
    expect(sessionOf(chat(body, "one"))).not.toBe(sessionOf(chat(body, "two")));
  });

  it("of a text is its prompt", () => {
    const text = (ids: number[]) => preparedRequest({ promptIds: Uint32Array.from(ids) });
    expect(sessionOf(text([1, 2, 3]))).toBe(sessionOf(text([1, 2, 3])));
    expect(sessionOf(text([1, 2, 3]))).not.toBe(sessionOf(text([3, 2, 1])));
  });
});

it("requests are split by session, and go to the other pool when theirs fails", async () => {
  const world = await fleet({ east: ["http://a:1"], canary: ["http://b:1"] }, { retry: { attempts: 1 } }, undefined, {
    split: { east: 50, canary: 50 },
  });
  const ask = (user: string) => {
    const request = preparedRequest({ text: { kind: "chat", body: { user, messages: [] } } });
    return collect(world.dispatcher.dispatch(request, 0, never));
  };
  const users = Array.from({ length: 40 }, (_, index) => `user-${index}`);
  const poolOf = async (user: string) => {
    const event = (await ask(user)).findLast(({ type }) => type === "attempt");
    return event?.type === "attempt" ? event.pool : undefined;
  };
  const before: Array<string | undefined> = [];
  for (const user of users) before.push(await poolOf(user));
  expect(before.filter((pool) => pool === "canary").length).toBeGreaterThan(8);
  expect(before.filter((pool) => pool === "east").length).toBeGreaterThan(8);
  for (const [index, user] of users.entries()) expect(await poolOf(user)).toBe(before[index]);
  world.backend("canary/b:1").script = () => answers(unavailable("backend_unreachable", "refused"));
  for (const user of users) expect(await poolOf(user)).toBe("east");
});
