"""The spans of handlers, for `jobqueue.tracing`. Only this module needs OpenTelemetry.

The spans follow the conventions for messaging, https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/. The
conventions use links for batches of messages. If a span processes only one message, as here, they allow a parent instead. So one
trace shows the submitter of a job and all attempts of the job.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import Token

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from jobqueue.job import ClaimedJob, Outcome

OTHER_ERROR = "_OTHER"
"""The value of ``error.type`` for unknown errors (https://opentelemetry.io/docs/specs/semconv/registry/attributes/error/)."""

_propagator = TraceContextTextMapPropagator()


def current_trace() -> dict[str, str]:
    """Return the trace of the current span; empty without a span."""
    headers: dict[str, str] = {}
    _propagator.inject(headers)
    return headers


@contextmanager
def continued(given: Mapping[str, str]) -> Iterator[None]:
    """Use the span that a trace names as the current span."""
    token = context.attach(_propagator.extract(given, Context()))
    try:
        yield
    finally:
        context.detach(token)


def handler_spans() -> HandlerSpans | None:
    """Return the factory of handler spans; None without an SDK."""
    tracer = trace.get_tracer("jobqueue")
    return None if isinstance(tracer, trace.NoOpTracer | trace.ProxyTracer) else HandlerSpans(tracer)


class HandlerSpans:
    """Creates a span for each run, of kind CONSUMER, as a child of the submitter's span."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, job: ClaimedJob, node_id: str) -> HandlerSpan:
        """Start the span of a run. Make it the current span of the calling task and of the tasks that this task starts."""
        parent, options = Context(), job.options
        if options is not None and options.traceparent is not None:
            given = {"traceparent": options.traceparent, "tracestate": options.tracestate or ""}
            parent = _propagator.extract(given, parent)
        attributes: dict[str, str | int | float] = {
            "messaging.system": "jobqueue",
            "messaging.operation.type": "process",
            "messaging.operation.name": "process",
            "messaging.destination.name": job.queue,
            "messaging.message.id": job.id,
            "messaging.client.id": node_id,
            "jobqueue.kind": job.kind,
            "jobqueue.attempt": job.attempt,
            "jobqueue.max_retries": job.max_retries,
            "jobqueue.wait": job.waited,
        }
        span = self._tracer.start_span(f"process {job.kind}", parent, SpanKind.CONSUMER, attributes)
        return HandlerSpan(span, trace.set_span_in_context(span, parent))


class HandlerSpan:
    """The span of one run.

    Attributes:
        error_type: the value of ``error.type``, if the run fails.
    """

    __slots__ = ("_context", "_span", "_token", "error_type")

    def __init__(self, span: Span, within: Context) -> None:
        self._span = span
        self._context = within
        self._token: Token[Context] = context.attach(within)
        self.error_type: str | None = None

    @property
    def trace(self) -> dict[str, str]:
        """The trace that another process needs to continue this span."""
        headers: dict[str, str] = {}
        _propagator.inject(headers, self._context)
        return headers

    def leave(self) -> None:
        """Detach the span from the task that started it."""
        context.detach(self._token)

    def end(self, outcome: Outcome | None) -> None:
        """Record the outcome and end the span; None means that the lease is lost and the outcome unknown."""
        span = self._span
        span.set_attribute("jobqueue.outcome", "lease lost" if outcome is None else outcome.outcome)
        if outcome is not None and outcome.delay is not None:
            span.set_attribute("jobqueue.delay", outcome.delay)
        if outcome is not None and outcome.error is not None:
            self._fail(outcome.error.error, outcome.error.traceback)
        span.end()

    def _fail(self, message: str, stacktrace: str | None) -> None:
        error_type = self.error_type or OTHER_ERROR
        self._span.set_attribute("error.type", error_type)
        if stacktrace is not None:
            # Do not use record_exception: it would run the error's code again. The executor has already formatted the error.
            said = {"exception.type": error_type, "exception.message": message, "exception.stacktrace": stacktrace}
            self._span.add_event("exception", said)
        self._span.set_status(Status(StatusCode.ERROR, message))
