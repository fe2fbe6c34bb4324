import {
  type Attributes,
  type Context,
  propagation,
  ROOT_CONTEXT,
  type Span,
  SpanKind,
  SpanStatusCode,
  type Tracer,
  trace,
} from "@opentelemetry/api";

/** The stages of DESIGN section 2, in order. */
export type Stage = "receive" | "authenticate" | "prepare" | "admit" | "route" | "dispatch" | "relay" | "settle";

export interface StageSpan {
  set(attributes: Attributes): void;
  event(name: string, attributes?: Attributes): void;
  /** `code` is an error's stable code; no message, since those are for callers. */
  fail(code: string): void;
  end(): void;
}

/** The trace of one request: one root span, one child a stage. */
export interface RequestTrace extends StageSpan {
  /** For the backend: this request's own span, or the caller's when nothing is traced here. */
  readonly traceparent: string | undefined;
  stage(name: Stage): StageSpan;
}

export interface Tracing {
  request(name: string, header: (name: string) => string | undefined): RequestTrace;
}

const silent: StageSpan = { set() {}, event() {}, fail() {}, end() {} };
const stageOfNothing = (): StageSpan => silent;
const untraced: RequestTrace = { ...silent, traceparent: undefined, stage: stageOfNothing };

/** Nothing is recorded, and nothing made for it; a caller's trace context still reaches the backend. */
export const noTracing: Tracing = {
  request(_, header) {
    const traceparent = validTraceparent(header("traceparent"));
    return traceparent === undefined ? untraced : { ...untraced, traceparent };
  },
};

/** True where a stage's span records something: else what it would be told need not be put together. */
export const isRecording = (span: StageSpan): boolean => span !== silent;

/** W3C Trace Context, version 00; anything else is not handed on. */
function validTraceparent(value: string | undefined): string | undefined {
  return value !== undefined && /^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/.test(value) ? value : undefined;
}

function wrap(span: Span): StageSpan {
  return {
    set: (attributes) => void span.setAttributes(attributes),
    event: (name, attributes) => void span.addEvent(name, attributes),
    fail(code) {
      span.setStatus({ code: SpanStatusCode.ERROR });
      span.setAttribute("error.type", code);
    },
    end: () => span.end(),
  };
}

/** Spans through whatever provider and propagator are registered with @opentelemetry/api. */
export function createTracing(tracer: Tracer = trace.getTracer("sluice")): Tracing {
  return {
    request(name, header) {
      const carrier = { traceparent: header("traceparent"), tracestate: header("tracestate") };
      const parent: Context = propagation.extract(ROOT_CONTEXT, carrier);
      const span = tracer.startSpan(name, { kind: SpanKind.SERVER }, parent);
      const own = trace.setSpan(parent, span);
      const outgoing: Record<string, string> = {};
      propagation.inject(own, outgoing);
      return {
        ...wrap(span),
        traceparent: outgoing.traceparent,
        stage: (stage) => wrap(tracer.startSpan(stage, {}, own)),
      };
    },
  };
}

/** Runs `work` inside a stage's span. To be awaited: without a span there is no promise beside that of `work`. */
export function inStage<Result>(
  requestTrace: RequestTrace,
  stage: Stage,
  work: (span: StageSpan) => Promise<Result> | Result,
): Promise<Result> | Result {
  const span = requestTrace.stage(stage);
  return isRecording(span) ? inSpan(span, work) : work(span);
}

async function inSpan<Result>(span: StageSpan, work: (span: StageSpan) => Promise<Result> | Result): Promise<Result> {
  try {
    return await work(span);
  } catch (error) {
    span.fail(codeOf(error));
    throw error;
  } finally {
    span.end();
  }
}

const codeOf = (error: unknown): string =>
  error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : "internal_error";
