import { afterEach, expect, it } from "vitest";
import { closeFleets, fleet } from "../../../test/support/fleet.ts";
import { preparedRequest } from "../../../test/support/prepared.ts";
import { accepted, silence } from "../../../test/support/scripted-backend.ts";
import { SluiceError, unavailable } from "../../errors.ts";

const never = new AbortController().signal;
afterEach(closeFleets);

it("whatever comes together, every answer is whole or an error, and nothing is held when all is over", async () => {
  let state = 20_261_123;
  const random = () => {
    // Park and Miller's generator: the same course each time.
    state = (state * 48_271) % 0x7fffffff;
    return state / 0x7fffffff;
  };
  const world = await fleet(
    { east: ["http://a:1", "http://b:1", "http://c:1"], west: ["http://d:1", "http://e:1"] },
    {
      hedge: { after: "100ms", max: 1 },
      retry: { attempts: 3 },
      deadlines: { firstToken: "1s", betweenTokens: "500ms" },
    },
    undefined,
    { resume: { wait: "1s" } },
  );
  const { clock } = world;
  let open = 0;
  world.all(async function* (request, signal) {
    open++;
    try {
      const fate = random();
      if (random() < 0.7) yield accepted;
      await clock.sleep(Math.floor(random() * 300), signal);
      if (fate < 0.15) throw unavailable("backend_unreachable", "refused");
      if (fate < 0.25) yield* silence(signal);
      const breaksAt = fate < 0.45 ? Math.floor(random() * request.maxNewTokens) : Number.POSITIVE_INFINITY;
      for (let n = 0; n < request.maxNewTokens; n++) {
        if (n === breaksAt && fate < 0.4) throw unavailable("backend_stream_broken", "broke");
        if (n === breaksAt) yield* silence(signal);
        yield { type: "tokens", ids: [100 + request.generatedIds.length + n] };
        if (random() < 0.3) await clock.sleep(Math.floor(random() * 100), signal);
      }
      yield {
        type: "finish",
        reason: "length",
        usage: { promptTokens: 40, cachedTokens: 0, completionTokens: request.maxNewTokens },
      };
    } finally {
      open--;
    }
  });
  const whole = [100, 101, 102, 103, 104, 105, 106, 107];
  const tally = { whole: 0, failed: 0, left: 0 };
  const ask = async () => {
    await clock.sleep(Math.floor(random() * 60_000), never);
    const caller = new AbortController();
    const leaves = random() < 0.2;
    if (leaves) void clock.sleep(Math.floor(random() * 400), never).then(() => caller.abort());
    const ids: number[] = [];
    try {
      for await (const event of world.dispatcher.dispatch(preparedRequest(), 0, caller.signal)) {
        if (event.type === "tokens") ids.push(...event.ids);
      }
      tally.whole++;
      expect(ids).toEqual(whole);
    } catch (error) {
      if (!(error instanceof SluiceError)) throw error;
      if (caller.signal.aborted) tally.left++;
      else tally.failed++;
      expect(whole.slice(0, ids.length)).toEqual(ids);
    }
  };
  const all = Array.from({ length: 400 }, ask);
  await clock.advance(120_000);
  await Promise.all(all);
  expect(open).toBe(0);
  expect(tally.whole).toBeGreaterThan(250);
  expect(tally.left).toBeGreaterThan(20);
  for (const outcome of ["won", "lost"]) expect(world.hedges).toContain(outcome);
  for (const { backends } of world.dispatcher.snapshot().pools) {
    for (const { id, inFlight, load } of backends) {
      expect({ id, inFlight, load }).toEqual({ id, inFlight: 0, load: { pendingPrefillTokens: 0, activeRows: 0 } });
    }
  }
}, 120_000);
