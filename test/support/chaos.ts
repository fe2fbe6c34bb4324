import type OpenAI from "openai";
import type { DaemonProcess } from "./daemons.ts";
import { type GatewayOptions, type GatewayOverDaemons, metricAt, startGatewayOver } from "./gateway.ts";

export interface ChaosOptions {
  /** A daemon process; on a port given it takes the place of one that was killed there. */
  readonly startDaemon: (port?: number) => Promise<DaemonProcess>;
  readonly gateway: Omit<GatewayOptions, "daemons">;
  readonly ask: (seed: number) => Omit<OpenAI.ChatCompletionCreateParamsNonStreaming, "model" | "seed" | "stream">;
  /** Different requests: seeds 0 to this. */
  readonly seeds: number;
  /** Answers under way at once. */
  readonly streams: number;
  /** At least so many, and more until as many answers were taken on in the middle. */
  readonly kills: number;
  readonly onKill?: (kill: number, soFar: { readonly answers: number; readonly wrong: number }) => void;
}

/** An answer as its caller has it. */
export interface Told {
  readonly content: string;
  readonly finish: string;
  readonly promptTokens: number;
  readonly completionTokens: number;
}

export interface ChaosReport {
  readonly kills: number;
  /** What each seed is answered while nothing is killed. */
  readonly unbroken: readonly Told[];
  /** Answers given while daemons were killed. */
  readonly answers: number;
  /** Those that failed, or differ from the unbroken one. */
  readonly wrong: readonly string[];
  /** Choices that went on at another daemon behind what had been sent. */
  readonly resumed: number;
  /** Begun again before anything had been sent. */
  readonly retried: number;
  readonly seconds: number;
}

/** Answers that a daemon has under way before it is worth a kill. */
const openAnswers = 4;
/** Pieces that come, from all daemons, while it has them: then some of its own answers are in the middle. */
const piecesBetween = 100;

/**
 * Three daemons behind one gateway, streams that never stop, and a `kill -9` of a random daemon whenever all three are
 * ready and the chosen one is in the middle of answers. Every answer is compared with the unbroken one of its seed.
 */
export async function chaos(options: ChaosOptions): Promise<ChaosReport> {
  const daemons = await Promise.all([0, 1, 2].map(() => options.startDaemon()));
  const gateway = await startGatewayOver({ ...options.gateway, daemons });
  try {
    return await kill(options, daemons, gateway);
  } finally {
    await gateway.close(0);
    for (const daemon of daemons) await daemon.kill();
  }
}

async function kill(
  options: ChaosOptions,
  daemons: DaemonProcess[],
  gateway: GatewayOverDaemons,
): Promise<ChaosReport> {
  const { seeds, streams, kills } = options;
  const pieces = new Pieces();
  const told = (seed: number) => answer(options, gateway, seed, () => pieces.add());
  const unbroken = await Promise.all(Array.from({ length: seeds }, (_, seed) => told(seed)));
  const began = performance.now();
  const wrong: string[] = [];
  let done = false;
  let answers = 0;
  const workers = Array.from({ length: streams }, async (_, worker) => {
    for (let turn = worker; !done; turn++) {
      const seed = turn % seeds;
      const seen = await told(seed).catch((error: unknown) => `failed: ${String(error)}`);
      answers++;
      if (JSON.stringify(seen) === JSON.stringify(unbroken[seed])) continue;
      // Nothing more can be shown; the rest may end as it is.
      wrong.push(`seed ${seed}: ${JSON.stringify(seen)}`);
      done = true;
      pieces.stop();
    }
  });
  const retried = (when: string) =>
    gateway.metric(`sluice_retried_total{model="${options.gateway.model}",when="${when}"}`);
  let killed = 0;
  while (!done && (killed < kills || (await retried("resumed")) < kills)) {
    const index = Math.floor(Math.random() * daemons.length);
    const victim = daemons[index];
    if (victim === undefined) throw new Error("there are three");
    const busy = async () => (await metricAt(victim.url, "sluice_daemon_open_answers")) >= openAnswers;
    do {
      while (!done && !(await busy())) await pieces.more(1);
      await pieces.more(piecesBetween);
    } while (!done && !(await busy()));
    await victim.kill();
    daemons[index] = await options.startDaemon(Number(new URL(victim.url).port));
    killed++;
    options.onKill?.(killed, { answers, wrong: wrong.length });
  }
  done = true;
  await Promise.all(workers);
  return {
    kills: killed,
    unbroken,
    answers,
    wrong,
    resumed: await retried("resumed"),
    retried: await retried("unseen"),
    seconds: (performance.now() - began) / 1000,
  };
}

/** Counts what streams bring, and wakes who waits for more of it. */
class Pieces {
  #count = 0;
  #came = () => {};
  #stopped = false;

  add(): void {
    this.#count++;
    this.#came();
  }

  /** Nobody waits for more any longer. */
  stop(): void {
    this.#stopped = true;
    this.#came();
  }

  async more(count: number): Promise<void> {
    const enough = this.#count + count;
    while (this.#count < enough && !this.#stopped) {
      await new Promise<void>((resolve) => {
        this.#came = resolve;
      });
    }
  }
}

async function answer(
  { ask, gateway: { model } }: ChaosOptions,
  { openai }: GatewayOverDaemons,
  seed: number,
  onText: () => void,
): Promise<Told> {
  const told = { content: "", finish: "", promptTokens: 0, completionTokens: 0 };
  const chunks = await openai.chat.completions.create({
    ...ask(seed),
    model,
    seed,
    stream: true,
    stream_options: { include_usage: true },
  });
  for await (const chunk of chunks) {
    const [choice] = chunk.choices;
    told.content += choice?.delta.content ?? "";
    told.finish = choice?.finish_reason ?? told.finish;
    told.promptTokens = chunk.usage?.prompt_tokens ?? told.promptTokens;
    told.completionTokens = chunk.usage?.completion_tokens ?? told.completionTokens;
    if (choice?.delta.content) onText();
  }
  return told;
}
