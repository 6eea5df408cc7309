"""What a check has to say, as a value, and the words that figures are said in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from psycopg.rows import namedtuple_row

from jobqueue.storage.database import Connection

Verdict = Literal["ok", "warning", "problem", "unknown"]

SEVERITY: dict[Verdict, int] = {"problem": 0, "warning": 1, "unknown": 2, "ok": 3}
"""What comes first."""

NAMED = 3
"""How many of many are named; the others are counted."""


QUOTED = 120
"""Characters of a reason or an error that are quoted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what it is about, in a word or two.
        verdict: ``unknown`` where the role, or the server, does not let it be told.
        finding: what was found, with figures.
        advice: what to do about it; None when there is nothing to do.
    """

    check: str
    verdict: Verdict
    finding: str
    advice: str | None = None


def unknown(check: str, reason: str, advice: str | None = None) -> Finding:
    """Say that something cannot be told, and why."""
    return Finding(check, "unknown", f"cannot be told, because {reason}", advice)


def query(connection: Connection, sql: str, *params: Any) -> list[Any]:
    """Run a query; its rows have the columns as attributes."""
    return connection.cursor(row_factory=namedtuple_row).execute(sql.encode(), params or None).fetchall()


def duration(seconds: float) -> str:
    """Say a time in its largest unit, such as ``12 min``."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def size(bytes_: float) -> str:
    """Say a number of bytes, such as ``12 MB``."""
    for unit, length in (("TB", 1 << 40), ("GB", 1 << 30), ("MB", 1 << 20)):
        if bytes_ >= length:
            return f"{bytes_ / length:.1f} {unit}".replace(".0 ", " ")
    return f"{bytes_ / 1024:.0f} kB"


def count(number: float, one: str, many: str | None = None) -> str:
    """Say how many of what: ``1 job``, ``12,000 jobs``."""
    return f"{number:,.0f} {one if number == 1 else many or one + 's'}"


def short(text: str) -> str:
    """Cut a text that somebody wrote where it would fill a screen."""
    return text if len(text) <= QUOTED else text[: QUOTED - 1] + "…"


def names(all_of_them: Sequence[str]) -> str:
    """Name the first few, and count the others."""
    more = len(all_of_them) - NAMED
    return ", ".join(all_of_them[:NAMED]) + (f" and {more} more" if more > 0 else "")
