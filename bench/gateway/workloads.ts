/** What is measured: CPU a request, all of it, from the accepted connection to the log line. */
export interface Workload {
  readonly name: string;
  readonly stream: boolean;
  /** One chunk a step of 5 ms; else all fifty at once. */
  readonly paced: boolean;
  readonly callers: number;
}

export const workloads: readonly Workload[] = [
  { name: "json", stream: false, paced: false, callers: 16 },
  { name: "burst", stream: true, paced: false, callers: 16 },
  { name: "paced 1", stream: true, paced: true, callers: 1 },
  { name: "paced 16", stream: true, paced: true, callers: 16 },
  { name: "paced 64", stream: true, paced: true, callers: 64 },
];
