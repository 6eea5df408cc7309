"""Logs: one line per event, for people on a terminal and as JSON elsewhere. Payloads, tokens and passwords are never in them."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

# structlog loads rich where it is installed, for tracebacks that we do not use: 3 MB less for each node without it.
sys.modules.setdefault("rich", None)  # type: ignore[arg-type]

import structlog  # noqa: E402

if sys.modules["rich"] is None:
    del sys.modules["rich"]

LEVELS = ("debug", "info", "warning", "error")


def configure(level: str, stream: TextIO = sys.stderr) -> None:
    """Send all log lines from this level on to the stream, which decides their form."""
    # Both show the values of variables in a traceback unless told not to, which also takes a second for each.
    form: list[Any]
    if stream.isatty():
        form = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    else:
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        form = [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *form,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )


def bind(**fields: Any) -> None:
    """Have all lines from now on carry these fields."""
    structlog.contextvars.bind_contextvars(**fields)
