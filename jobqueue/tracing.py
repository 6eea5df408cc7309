"""A trace on its way: from who submits a job, through the queue, into the span of its handler.

A job may carry a ``traceparent`` and a ``tracestate`` (W3C Trace Context, https://www.w3.org/TR/trace-context/): a trace here is a
mapping of these two names, as in the headers of a request. One that is malformed is ignored, as the standard has it.

Spans are OpenTelemetry's (`jobqueue.spans`), which nothing here is the first to load: who has a span to pass on, or an SDK for
them, has loaded it. Where nobody has, a job costs what it would without all this.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobqueue.spans import HandlerSpans

_IDS = r"(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
# No version is ff. What a later one than ours adds comes after a dash.
_TRACEPARENT = re.compile(rf"00-{_IDS}|(?!00|ff)[0-9a-f]{{2}}-{_IDS}(?:-.*)?")
_TRACEPARENT_LENGTH = 55
_TRACESTATE = re.compile(r"[ -~]{1,512}")


def read(traceparent: str | None, tracestate: str | None = None) -> dict[str, str]:
    """Make a trace of what somebody sent; an empty one where the ``traceparent`` is missing or malformed."""
    if traceparent is None or not _TRACEPARENT.fullmatch(traceparent):
        return {}
    trace = {"traceparent": traceparent[:_TRACEPARENT_LENGTH]}
    if tracestate is not None and _TRACESTATE.fullmatch(tracestate):
        trace["tracestate"] = tracestate
    return trace


def current_headers() -> dict[str, str]:
    """Return the trace of the current span, as headers of a request or fields of a job; an empty one without a span."""
    if not _is_loaded():
        return {}
    from jobqueue import spans  # noqa: PLC0415 - only where OpenTelemetry is loaded; so are those below

    return spans.current_trace()


@contextmanager
def continued(trace: Mapping[str, str] | None) -> Iterator[None]:
    """Let the span that a trace names be the current one, for what is called in a process where OpenTelemetry is loaded."""
    if not trace or not _is_loaded():
        yield
        return
    from jobqueue import spans  # noqa: PLC0415

    with spans.continued(trace):
        yield


def handler_spans() -> HandlerSpans | None:
    """Return what makes the spans of handlers; None where no SDK of OpenTelemetry has been set up so far, or it is disabled."""
    if not _is_loaded():
        return None
    from jobqueue import spans  # noqa: PLC0415

    return spans.handler_spans()


@contextmanager
def contained() -> Iterator[None]:
    """Log what an SDK raises, or a part that a user has added to it: a job does not fail for it, nor the node."""
    try:
        yield
    except Exception:  # noqa: BLE001 - it is logged
        from jobqueue import logs  # noqa: PLC0415 - a program that only submits jobs does without structlog

        logs.log.exception("a span was lost")


def error_type(error: BaseException) -> str:
    """Name an exception's class, as ``error.type`` and ``exception.type`` have it."""
    cls: Any = type(error)
    return str(cls.__qualname__) if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _is_loaded() -> bool:
    return "opentelemetry.trace" in sys.modules
