import { z } from "zod";

/** What a supervised process and its supervisor say over the IPC channel. A closed channel means: the other side is gone. */

/** From the child: how far its start is, where it listens, and that it is ready for work. */
export const fromChild = z.discriminatedUnion("type", [
  z.object({ type: z.literal("progress"), fraction: z.number() }),
  z.object({ type: z.literal("ready"), url: z.string() }),
  /** The start cannot succeed however often it is repeated (bad model, port taken): no restart. */
  z.object({ type: z.literal("refused"), message: z.string(), exitCode: z.int() }),
]);
export type FromChild = z.output<typeof fromChild>;

/** To the child: finish what runs within `drainMs`, then end. */
export const toChild = z.object({ type: z.literal("stop"), drainMs: z.number() });
export type ToChild = z.output<typeof toChild>;

export function isSupervised(): boolean {
  return process.env.SLUICE_SUPERVISED === "1" && process.send !== undefined;
}

export function tellSupervisor(message: FromChild): void {
  if (isSupervised()) process.send?.(message);
}
