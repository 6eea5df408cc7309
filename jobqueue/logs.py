"""Logs: one line per event, for people on a terminal and as JSON elsewhere. Payloads, tokens and passwords are never in them."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog

LEVELS = ("debug", "info", "warning", "error")


def configure(level: str, stream: TextIO = sys.stderr) -> None:
    """Send all log lines from this level on to the stream, which decides their form."""
    form: list[Any]
    if stream.isatty():
        form = [structlog.dev.ConsoleRenderer()]
    else:
        form = [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
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
