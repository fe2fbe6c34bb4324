/** How far bringing a model is. `total` is undefined where the source does not say. */
export interface ModelProgress {
  readonly phase: "wait" | "download" | "verify" | "unpack";
  readonly received: number;
  readonly total: number | undefined;
}

export type OnModelProgress = (progress: ModelProgress) => void;
