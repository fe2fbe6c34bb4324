import type { ModelConfig } from "../../config/schema.ts";
import type { PreparedRequest } from "../request.ts";

/**
 * The model's pools in the order in which they are asked: the one that its share of the traffic falls to, then the others as
 * they are listed. Pure: the same session gets the same order on every gateway, so its prefix stays where it is cached.
 * Weighted rendezvous hashing (Schindelhauer and Schomaker 2005, score = -weight / ln hash): when weights change, only as
 * many sessions move as must.
 */
export function inSplitOrder<P extends { readonly name: string }>(
  pools: readonly P[],
  split: ModelConfig["split"],
  session: number,
): readonly P[] {
  if (split === undefined) return pools;
  let first: P | undefined;
  let best = 0;
  for (const pool of pools) {
    const weight = Object.hasOwn(split, pool.name) ? (split[pool.name] ?? 0) : 0;
    const score = -weight / Math.log(unitHash(pool.name, session));
    if (score <= best) continue;
    best = score;
    first = pool;
  }
  return first === undefined ? pools : [first, ...pools.filter((pool) => pool !== first)];
}

/** Enough to tell conversations apart; hashing a whole long document would cost more than routing. */
const maxOpeningLength = 4_096;

/**
 * One number for all requests of a session: of the caller's own word for it (`prompt_cache_key`, `user`) where there is one,
 * else of how the conversation opens, up to the first message of its user, which every later turn repeats. Tenants never
 * share one.
 */
export function sessionOf(request: PreparedRequest): number {
  const { tenant, text, promptIds } = request;
  const said = text.body.prompt_cache_key ?? text.body.user;
  const seed = hash(tenant.name, 0);
  if (typeof said === "string" && said !== "") return hash(said, seed);
  if (text.kind === "chat") return hash(opening(text.body.messages), seed);
  let session = seed;
  for (const id of promptIds.subarray(0, maxOpeningLength / 16)) session = mix(session ^ id);
  return session;
}

function opening(messages: unknown): string {
  const parts: string[] = [];
  for (const message of Array.isArray(messages) ? (messages as readonly unknown[]) : []) {
    const { role, content } = message as { readonly role?: unknown; readonly content?: unknown };
    parts.push(textOf(content));
    if (role === "user") break;
  }
  return parts.map((part) => part.slice(0, maxOpeningLength)).join("\0");
}

function textOf(content: unknown): string {
  if (typeof content === "string") return content;
  const parts = Array.isArray(content) ? (content as ReadonlyArray<{ readonly text?: unknown }>) : [];
  return parts.map(({ text }) => (typeof text === "string" ? text : "")).join("\0");
}

/** Between 0 and 1, both excluded: its logarithm must be a number below 0. */
export function unitHash(text: string, seed: number): number {
  return (hash(text, seed) + 0.5) / 0x1_0000_0000;
}

/** FNV-1a, finished by MurmurHash3's mixer; unsigned 32 bits. */
function hash(text: string, seed: number): number {
  let value = (0x811c9dc5 ^ seed) | 0;
  for (let index = 0; index < text.length; index++) value = Math.imul(value ^ text.charCodeAt(index), 0x01000193);
  return mix(value);
}

function mix(value: number): number {
  let mixed = value;
  mixed = Math.imul(mixed ^ (mixed >>> 16), 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
  return (mixed ^ (mixed >>> 16)) >>> 0;
}
