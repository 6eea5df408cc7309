"""Read what ``jobqueue.claim`` returns: all of it at once, or, where that fails, row by row, so that one bad row harms no other.

The text is one JSON array of arrays, a job each. Somebody's SQL can put anything into a row: a number where a text belongs, or JSON
that is nested too deeply for any decoder. So what separates the rows reads no value at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from jobqueue.job import ClaimedJob

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)
"""A whole string, or a character that gives JSON its structure."""

_AGAIN = '],"again":'


class Unreadable(NamedTuple):
    """A job that was claimed and cannot be read: what can be read of it, with null as its payload, and why."""

    job: ClaimedJob
    reason: str


class Claimed(list[ClaimedJob]):
    """The jobs of one claim.

    Attributes:
        again: the queues that a limit left short; in how many seconds to ask again, infinite: when jobs of the queue have ended.
        unreadable: jobs that were claimed too, and that this node cannot read.
    """

    def __init__(
        self,
        jobs: Iterable[ClaimedJob] = (),
        again: Mapping[str, float] | None = None,
        unreadable: Iterable[Unreadable] = (),
    ) -> None:
        super().__init__(jobs)
        self.again = again or {}
        self.unreadable = list(unreadable)


class _Limited(msgspec.Struct):
    """What ``jobqueue.claim`` returns where a limit left a queue short."""

    jobs: list[ClaimedJob]
    again: dict[str, float | None]


_jobs = msgspec.json.Decoder(list[ClaimedJob])
_limited = msgspec.json.Decoder(_Limited)
_job = msgspec.json.Decoder(ClaimedJob)
_again = msgspec.json.Decoder(dict[str, float | None])


def read(text: str) -> Claimed:
    """Return the claimed jobs; see ``jobqueue.claim`` for the form of the text."""
    try:
        if text.startswith("["):
            return Claimed(_jobs.decode(text))
        limited = _limited.decode(text)
        return Claimed(limited.jobs, _seconds(limited.again))
    except Exception:  # noqa: BLE001 - DecodeError, RecursionError, MemoryError: whatever it is, the rows are told apart
        return _read_each(text)


def _read_each(text: str) -> Claimed:
    again: Mapping[str, float] = {}
    if text.startswith("{"):
        jobs, _, rest = text.rpartition(_AGAIN)  # the quotes of a queue's name are escaped, so this is not in one
        text = jobs.removeprefix('{"jobs":') + "]"
        again = _seconds(_again.decode(rest.removesuffix("}")))
    claimed = Claimed(again=again)
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


def elements(array: str) -> list[str]:
    """Split the text of a JSON array at its own commas. It reads no value, so it does not depend on what the values are."""
    found: list[str] = []
    depth, begin = 0, 1
    for token in _TOKEN.finditer(array):
        character = token[0]
        if character in ("[", "{"):
            depth += 1
        elif character in ("]", "}"):
            depth -= 1
        if (depth == 1 and character == ",") or (depth == 0 and token.start() > begin):
            found.append(array[begin : token.start()])
            begin = token.end()
    return found


def _seconds(again: Mapping[str, float | None]) -> dict[str, float]:
    return {queue: math.inf if wait is None else wait for queue, wait in again.items()}
