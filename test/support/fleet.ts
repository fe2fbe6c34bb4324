import { type AttemptReport, createDispatcher, type Dispatcher } from "../../src/gateway/dispatch/dispatch.ts";
import type { TextCodec } from "../../src/gateway/dispatch/sent.ts";
import type { ShadowReport } from "../../src/gateway/dispatch/shadow.ts";
import { poolsConfig } from "./prepared.ts";
import { type Script, type ScriptedBackend, scriptedBackends } from "./scripted-backend.ts";
import { virtualClock } from "./virtual-clock.ts";

export const open: Dispatcher[] = [];

/** For `afterEach`. */
export async function closeFleets(): Promise<void> {
  for (const dispatcher of open.splice(0)) await dispatcher.close();
}

const oneEach = { east: ["http://east-1:1", "http://east-2:1"], west: ["http://west-1:1"] };

/** A dispatcher over scripted backends on a virtual clock, ready. `changes` go into every pool, `model` into the model. */
export async function fleet(
  pools: Readonly<Record<string, readonly string[]>> = oneEach,
  changes: Record<string, unknown> = {},
  codec?: TextCodec,
  model: Record<string, unknown> = {},
) {
  const clock = virtualClock();
  const { open: openBackend, byId } = scriptedBackends();
  const reports: AttemptReport[] = [];
  const ends: Array<{ attempts: number; code: string | undefined }> = [];
  const hedges: string[] = [];
  const shadows: ShadowReport[] = [];
  const config = poolsConfig(pools, changes, model);
  const dispatcher = createDispatcher({
    config,
    openBackend,
    clock,
    vocabularyHash: () => "v",
    codec: () => codec,
    random: () => 0.5,
    hooks: {
      onAttempt: (report) => reports.push(report),
      onEnd: ({ attempts, error }) => ends.push({ attempts, code: error?.code }),
      onHedge: ({ outcome }) => hedges.push(outcome),
      onShadow: (report) => shadows.push(report),
    },
  });
  open.push(dispatcher);
  await dispatcher.untilReady(new AbortController().signal);
  await clock.advance(0);
  const backend = (id: string): ScriptedBackend => {
    const found = byId.get(id);
    if (found === undefined) throw new Error(`no backend ${id}`);
    return found;
  };
  const all = (script: Script) => {
    for (const each of byId.values()) each.script = script;
  };
  const asked = () => [...byId.values()].flatMap(({ id, requests }) => requests.map(() => id));
  return { clock, dispatcher, backend, all, asked, reports, ends, hedges, shadows, config, byId };
}
