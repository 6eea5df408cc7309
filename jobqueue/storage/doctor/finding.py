"""Represent what a check found, and format its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

from jobqueue.storage.connection import Connection

Verdict = Literal["ok", "warning", "problem", "unknown"]

SEVERITY: dict[Verdict, int] = {"problem": 0, "warning": 1, "unknown": 2, "ok": 3}
"""Sort order of the verdicts, the worst first."""

NAMED = 3
"""Maximum number of names in a finding. A finding with more names also has the number of the others."""


QUOTED = 120
"""Maximum length of a quoted reason or error, in characters. Longer texts are cut."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a check.

    Attributes:
        check: the name of the check.
        verdict: the rating of the observation; ``unknown`` if the role's privileges or the server do not allow the check.
        finding: the observation, with figures.
        advice: how to fix the problem; None if there is nothing to fix.
    """

    check: str
    verdict: Verdict
    finding: str
    advice: str | None = None


def unknown(check: str, reason: str, advice: str | None = None) -> Finding:
    """Make the finding of a check that failed, with the reason."""
    return Finding(check, "unknown", f"cannot be checked: {reason}", advice)


def query(connection: Connection, sql: str, *params: Any) -> list[Any]:
    """Run a query and return its rows, whose attributes are the columns."""
    rows = connection.execute(sql, params)
    return [SimpleNamespace(**dict(zip(rows.names, row, strict=True))) for row in rows]


def duration(seconds: float) -> str:
    """Format a duration in its largest unit, such as ``12 min``."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def size(bytes_: float) -> str:
    """Format a number of bytes in binary units, such as ``12 MB`` (12 times 2**20 bytes)."""
    for unit, length in (("TB", 1 << 40), ("GB", 1 << 30), ("MB", 1 << 20)):
        if bytes_ >= length:
            return f"{bytes_ / length:.1f} {unit}".replace(".0 ", " ")
    return f"{bytes_ / 1024:.0f} kB"


def count(number: float, one: str, many: str | None = None) -> str:
    """Format a count with its noun: ``1 job``, ``12,000 jobs``."""
    return f"{number:,.0f} {one if number == 1 else many or one + 's'}"


def short(text: str) -> str:
    """Cut a text to `QUOTED` characters."""
    return text if len(text) <= QUOTED else text[: QUOTED - 1] + "…"


def names(all_of_them: Sequence[str]) -> str:
    """List the first `NAMED` names and the number of the others."""
    more = len(all_of_them) - NAMED
    return ", ".join(all_of_them[:NAMED]) + (f" and {more} more" if more > 0 else "")
