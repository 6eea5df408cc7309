"""Pass traces on: from the submitter of a job, through the queue, to the span of its handler.

A job may have a ``traceparent`` and a ``tracestate`` (W3C Trace Context, https://www.w3.org/TR/trace-context/). In this module, a
trace is a mapping of these two names, as in request headers. Malformed values are ignored, as the standard demands.

`jobqueue.spans` needs OpenTelemetry. This module never loads OpenTelemetry itself: a program with a span to pass on, or with an
SDK, has already loaded it. In other programs, tracing costs nothing.
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
# The version is never ff. Versions after 00 may append more fields after a dash.
_TRACEPARENT = re.compile(rf"00-{_IDS}|(?!00|ff)[0-9a-f]{{2}}-{_IDS}(?:-.*)?")
_TRACEPARENT_LENGTH = 55
_TRACESTATE = re.compile(r"[ -~]{1,512}")


def read(traceparent: str | None, tracestate: str | None = None) -> dict[str, str]:
    """Parse the headers of a trace; return an empty trace if ``traceparent`` is missing or malformed."""
    if traceparent is None or not _TRACEPARENT.fullmatch(traceparent):
        return {}
    trace = {"traceparent": traceparent[:_TRACEPARENT_LENGTH]}
    if tracestate is not None and _TRACESTATE.fullmatch(tracestate):
        trace["tracestate"] = tracestate
    return trace


def current_headers() -> dict[str, str]:
    """Return the trace of the current span, as request headers or fields of a job; empty without a span."""
    if not _is_loaded():
        return {}
    from jobqueue import spans  # noqa: PLC0415 - only if OpenTelemetry is loaded, as below

    return spans.current_trace()


@contextmanager
def continued(trace: Mapping[str, str] | None) -> Iterator[None]:
    """Use the span that a trace names as the current span, if OpenTelemetry is loaded in this process."""
    if not trace or not _is_loaded():
        yield
        return
    from jobqueue import spans  # noqa: PLC0415

    with spans.continued(trace):
        yield


def handler_spans() -> HandlerSpans | None:
    """Return the factory of handler spans; None if no OpenTelemetry SDK is set up, or if it is disabled."""
    if not _is_loaded():
        return None
    from jobqueue import spans  # noqa: PLC0415

    return spans.handler_spans()


@contextmanager
def contained() -> Iterator[None]:
    """Catch and log errors of an SDK or of its plug-ins: they must not make a job or a node fail."""
    try:
        yield
    except Exception:  # noqa: BLE001 - the error is logged
        from jobqueue import logs  # noqa: PLC0415 - a program that only submits jobs does not need structlog

        logs.log.exception("a span was lost")


def error_type(error: BaseException) -> str:
    """Return the name of an exception's class, as for ``error.type`` and ``exception.type``."""
    cls: Any = type(error)
    return str(cls.__qualname__) if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _is_loaded() -> bool:
    return "opentelemetry.trace" in sys.modules
