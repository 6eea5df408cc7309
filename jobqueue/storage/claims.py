"""Read what ``jobqueue.claim`` returns: all of it at once, or, where that fails, row by row, so that one bad row harms no other.

The text is one JSON array of arrays, a job each, or an object with that array and more. Somebody's SQL can put anything into a row,
such as a number where a text belongs, or JSON that is nested too deeply for any decoder. So what separates the rows reads no value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from jobqueue.job import ClaimedJob

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)
"""A whole string, or a character that gives JSON its structure."""


class Expired(msgspec.Struct, frozen=True):
    """A job that died while it waited.

    Attributes:
        attempt: how often it had been run.
        reason: ``expired``, or why PostgreSQL could not move its row.
    """

    id: str
    queue: str
    kind: str
    attempt: int
    reason: str = "expired"


class Unreadable(NamedTuple):
    """A job that was claimed and cannot be read: what can be read of it, with null as its payload, and why."""

    job: ClaimedJob
    reason: str


class Claimed(list[ClaimedJob]):
    """The jobs of one claim.

    Attributes:
        again: the queues that a limit left short; in how many seconds to ask again, infinite: when jobs of the queue have ended.
        dead: jobs that died instead, since PostgreSQL could not move their rows.
        unreadable: jobs that were claimed too, and that this node cannot read.
    """

    def __init__(
        self, jobs: Iterable[ClaimedJob] = (), again: Mapping[str, float] | None = None, *, dead: Sequence[Expired] = ()
    ) -> None:
        super().__init__(jobs)
        self.again = again or {}
        self.dead = dead
        self.unreadable: list[Unreadable] = []


class _Partly(msgspec.Struct):
    """What ``jobqueue.claim`` returns where a limit left a queue short, or a row could not be claimed."""

    jobs: list[ClaimedJob]
    again: dict[str, float | None]
    dead: list[Expired] = []


_jobs = msgspec.json.Decoder(list[ClaimedJob])
_partly = msgspec.json.Decoder(_Partly)
_job = msgspec.json.Decoder(ClaimedJob)


def read(text: str) -> Claimed:
    """Return the claimed jobs; see ``jobqueue.claim`` for the form of the text."""
    try:
        if text.startswith("["):
            return Claimed(_jobs.decode(text))
        partly = _partly.decode(text)
        return Claimed(partly.jobs, _seconds(partly.again), dead=partly.dead)
    except Exception:  # noqa: BLE001 - DecodeError, RecursionError, MemoryError: whatever it is, the rows are told apart
        return _read_each(text)


def _read_each(text: str) -> Claimed:
    claimed = Claimed()
    if text.startswith("{"):
        parts = dict(part.split(":", 1) for part in elements(text))
        text = parts['"jobs"']
        partly = _partly.decode('{"jobs":[],"again":%s,"dead":%s}' % (parts['"again"'], parts['"dead"']))  # noqa: UP031 - JSON in JSON
        claimed = Claimed((), _seconds(partly.again), dead=partly.dead)
    for row in elements(text):
        try:
            claimed.append(_job.decode(row))
        except Exception as error:  # noqa: BLE001
            claimed.unreadable.append(_unreadable(row, error))
    return claimed


def _unreadable(row: str, error: Exception) -> Unreadable:
    """Read the columns that are always of their type, and leave out the documents: payload, options, and saved."""
    queue, job_id, kind, _, *numbers = elements(row)[:12]
    numbers = [number if re.fullmatch(r"-?[0-9.e+-]+|null", number) else "0" for number in numbers]  # Infinity is not JSON
    readable = _job.decode(f"[{','.join([queue, job_id, kind, 'null', *numbers])}]")
    reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(f"{error}".split()) or type(error).__name__
    return Unreadable(readable, reason)


def elements(text: str) -> list[str]:
    """Split the text of a JSON array or object at its own commas. It reads no value, so no value can break it."""
    found: list[str] = []
    depth, begin = 0, 1
    for token in _TOKEN.finditer(text):
        character = token[0]
        if character in ("[", "{"):
            depth += 1
        elif character in ("]", "}"):
            depth -= 1
        if (depth == 1 and character == ",") or (depth == 0 and token.start() > begin):
            found.append(text[begin : token.start()])
            begin = token.end()
    return found


def _seconds(again: Mapping[str, float | None]) -> dict[str, float]:
    return {queue: math.inf if wait is None else wait for queue, wait in again.items()}
