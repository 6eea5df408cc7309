"""Parse durations, times and JSON on the command line.

Options and arguments use these functions as their type. Click shows the name of the function in the help.
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
_TIMES = "give a time such as 2030-01-31T08:00 (in the time zone of this machine) or 2030-01-31T08:00:00Z"

FOR_EVER = "for ever"


def duration(text: str) -> float:
    """Parse a duration such as ``10m``; return seconds."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise click.BadParameter(f"{text!r} is not a duration: give seconds or a number with a unit, like 90, 250ms, 10m or 2h")
    return float(found[1]) * _UNITS[found[2]]


def patience(text: str) -> float:
    """Parse a duration or `FOR_EVER`; return seconds, or infinity."""
    return math.inf if text == FOR_EVER else duration(text)


def time(text: str) -> str:
    """Parse a time in RFC 3339. Without a UTC offset, it is in the local time zone."""
    try:
        return datetime.fromisoformat(text).astimezone().isoformat()
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is not a time: {_TIMES}") from None


def time_or_age(text: str) -> str:
    """Parse a time, or an age such as ``2h``; return the time."""
    try:
        if _DURATION.fullmatch(text) is None:
            return time(text)
        return (datetime.now(UTC) - timedelta(seconds=duration(text))).isoformat()
    except (click.BadParameter, OverflowError):
        raise click.BadParameter(f"{text!r} is not a time: {_TIMES}, or an age such as 2h") from None


def json(text: str) -> Any:
    """Parse a JSON document; ``-`` reads it from standard input."""
    document = sys.stdin.buffer.read() if text == "-" else text.encode(errors="surrogateescape")
    try:
        return msgspec.json.decode(document)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"not a JSON document: {error}") from None


def number_or_none(text: str) -> float | str:
    """Parse a number or the word "none"."""
    try:
        return text if text == "none" else msgspec.json.decode(text, type=int | float)
    except ValueError:
        raise click.BadParameter(f"{text!r} must be a number or none") from None
