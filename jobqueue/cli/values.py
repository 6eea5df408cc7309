"""What people write on a command line, and programs do not: ``10m``, ``2h`` ago, a time by the clock on the wall, JSON.

Each function is a type of click: its name is what the help shows.
"""

from __future__ import annotations

import math
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import msgspec

_UNITS = {"": 1, "ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(rf"(\d+(?:\.\d+)?|\.\d+) ?({'|'.join(_UNITS)})", re.ASCII)
_TIMES = "a time such as 2030-01-31T08:00 (by the clock of this machine) or 2030-01-31T08:00:00Z"

FOR_EVER = "for ever"


def duration(text: str) -> float:
    """Read seconds."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{text!r} is no duration: seconds, or a number with a unit, such as 90, 250ms, 10m, 2h, 7d")
    return float(found[1]) * _UNITS[found[2]]


def patience(text: str) -> float:
    """Read seconds, which may be `FOR_EVER`."""
    return math.inf if text == FOR_EVER else duration(text)


def time(text: str) -> str:
    """Read a time in RFC 3339, whose offset is the local one where it has none."""
    try:
        return datetime.fromisoformat(text).astimezone().isoformat()
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is no time: {_TIMES}") from None


def time_or_age(text: str) -> str:
    """Read a time, or how long ago it was."""
    try:
        if _DURATION.fullmatch(text) is None:
            return time(text)
        return (datetime.now(UTC) - timedelta(seconds=duration(text))).isoformat()
    except (click.BadParameter, OverflowError):
        raise click.BadParameter(f"{text!r} is no time: {_TIMES}, or how long ago, such as 2h") from None


def json(text: str) -> Any:
    """Read a JSON document; ``-`` reads it from standard input."""
    document = sys.stdin.buffer.read() if text == "-" else text.encode(errors="surrogateescape")
    try:
        return msgspec.json.decode(document)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"no JSON document: {error}") from None


def number_or_none(text: str) -> float | str:
    """Read a number, or the word "none"."""
    try:
        return text if text == "none" else msgspec.json.decode(text, type=int | float)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a number nor none") from None
