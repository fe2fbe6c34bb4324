import type {
  Backend,
  FinishReason,
  GenerationEvent,
  GenerationRequest,
  Sampling,
  TextForm,
  Usage,
} from "../backends/backend.ts";
import type { SluiceError } from "../errors.ts";
import type { GrammarArtifact, GrammarSource } from "../grammar/grammar.ts";

/** What `receive` + `authenticate` know: a validated body and who sent it. */
export interface Tenant {
  readonly name: string;
  /** Model names this tenant may call; undefined = all. */
  readonly models: ReadonlySet<string> | undefined;
  readonly priority: number;
  readonly weight: number;
  /** HMAC(tenant), or the shared value where the operator says `cacheSharing: model`. */
  readonly salt: string;
}

/** The value of `prepare`: everything a backend needs, in tokens. One for each of the caller's `n` choices shares it. */
export interface PreparedRequest {
  readonly id: string;
  readonly receivedAt: number;
  readonly tenant: Tenant;
  /** The name the caller used. */
  readonly model: string;
  readonly promptIds: Uint32Array;
  /** Chained, salted keys of the prompt's full blocks, in order (gateway/prompt/blocks.ts). */
  readonly blockKeys: readonly number[];
  readonly blockSize: number;
  /** Held at admission: min(asked, cap, context left). */
  readonly maxNewTokens: number;
  readonly sampling: Omit<Sampling, "choice">;
  readonly n: number;
  readonly stopIds: readonly number[];
  /** Stop strings; matched over token boundaries by `relay`. */
  readonly stop: readonly string[];
  readonly grammar: { readonly artifact: GrammarArtifact; readonly source: GrammarSource } | undefined;
  readonly logprobs: number | undefined;
  readonly text: TextForm;
  /** The caller sees nothing before the end, so an answer that broke may begin anew on a backend that cannot go on with it. */
  readonly held?: boolean | undefined;
  /** W3C trace context of this request's own span, handed on to the backend. */
  readonly traceparent?: string | undefined;
}

/** The pure decision of `route`, kept for the span and the debug endpoint. */
export interface RouteDecision {
  readonly pool: string;
  readonly backend: Backend;
  readonly predictedMs: number;
  readonly matchedBlocks: number;
  readonly candidates: ReadonlyArray<{
    readonly backend: string;
    readonly predictedMs: number;
    readonly matchedBlocks: number;
    readonly pendingPrefillTokens: number;
    readonly excluded?: string;
  }>;
}

/** What `dispatch` hands to `relay`, one for each choice. */
export interface DispatchedChoice {
  readonly choice: number;
  /** Resolves before the first event: which backend answers. Changes are told by `attempt` events. */
  readonly events: AsyncIterable<DispatchEvent>;
}

export type DispatchEvent =
  | {
      readonly type: "attempt";
      readonly pool: string;
      readonly backend: string;
      readonly upstreamModel: string | undefined;
      readonly decision: RouteDecision;
    }
  /** What came of this choice so far counts no more: it begins anew. Only where the request is `held`. */
  | { readonly type: "restart" }
  | GenerationEvent;

/** The value `relay` leaves for `settle`. */
export interface Outcome {
  readonly usage: Usage;
  readonly finish: FinishReason | "tool_calls" | "content_filter" | "error" | "cancelled";
  /** Set when `finish` is `error` or `cancelled`. */
  readonly error: SluiceError | undefined;
  readonly firstTokenAt: number | undefined;
  readonly finishedAt: number;
}

export type { GenerationRequest };
