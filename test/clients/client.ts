import type { JSONValue } from "ai";
import { z } from "zod";

/** What is asked of every client in the same way. */
export interface Ask {
  readonly prompt: string;
  /** `tool`: the one tool below must be called, once. `json`: an answer of the shape `Place`. */
  readonly kind: "text" | "tool" | "json";
  readonly model: string;
  readonly maxTokens?: number;
  /** Sent on as they are, by the way that the client has for fields it does not know. */
  readonly fields?: Readonly<Record<string, JSONValue>>;
  readonly signal?: AbortSignal;
  /** Called whenever the client hands over a further piece of the answer. */
  readonly onPiece?: () => void;
}

/** An answer as the user of a client has it in the end. */
export interface Seen {
  readonly text: string;
  /** In the client's own word; undefined = none was told. */
  readonly finish: string | undefined;
  readonly usage: { readonly input: number | undefined; readonly output: number | undefined } | undefined;
  readonly calls: ReadonlyArray<{ readonly name: string; readonly input: unknown }>;
  /** What the client parsed where JSON was asked for. */
  readonly value: unknown;
  /** What the client threw, or reported in the way that its documentation names. */
  readonly error: unknown;
}

export interface ClientOptions {
  /** With `/v1`. */
  readonly baseURL: string;
  readonly apiKey: string;
}

/** An SDK as its users use it, without retries of its own. A failure is in `Seen.error`; nothing is thrown. */
export interface Client {
  streamed(ask: Ask): Promise<Seen>;
  whole(ask: Ask): Promise<Seen>;
}

export const Place = z.object({ city: z.string().max(40), known: z.boolean() });

export const findPlace = {
  name: "find_place",
  description: "Finds a place by its city.",
  input: z.object({ city: z.string().max(40) }),
};

const nothing: Seen = {
  text: "",
  finish: undefined,
  usage: undefined,
  calls: [],
  value: undefined,
  error: undefined,
};

/** What has been seen so far. */
export type Seeing = { -readonly [Key in keyof Seen]: Seen[Key] };

/** Runs `work` over what is known so far, and keeps that where it throws. */
export async function seeing(work: (seen: Seeing) => Promise<void>): Promise<Seen> {
  const seen = { ...nothing };
  try {
    await work(seen);
  } catch (error) {
    seen.error = error;
  }
  return seen;
}
