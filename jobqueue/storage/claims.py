"""Decode the result of ``jobqueue_internal.claim``.

First decode all rows at once. If that fails, decode row by row, so that a bad row affects no other.

The result is a JSON array with one array for each job, or an object that contains this array and more. A user's SQL can store
anything in a row, such as a number instead of a text, or JSON that is nested too deeply for a decoder. For this reason `elements`
separates the rows without decoding them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from jobqueue.job import ClaimedJob

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)
"""Matches a JSON string or a structural character."""


class Expired(msgspec.Struct, frozen=True):
    """A job that died while it was waiting.

    Attributes:
        id: the job's id.
        queue: its queue.
        kind: its kind.
        attempt: the number of attempts so far.
        reason: ``expired``, or the error with which PostgreSQL failed to move its row.
    """

    id: str
    queue: str
    kind: str
    attempt: int
    reason: str = "expired"


class Unreadable(NamedTuple):
    """A claimed job that this node cannot decode.

    Attributes:
        job: the job, with the columns that can be decoded. The payload is null, and `options` and `saved` are missing.
        reason: the decoder's error.
    """

    job: ClaimedJob
    reason: str


class Claimed(list[ClaimedJob]):
    """The jobs of one claim.

    Attributes:
        again: the queues for which a limit withheld jobs, with the seconds until the next claim is useful. Infinity
            means that no claim is useful before a job of the queue has ended.
        dead: jobs that died during the claim, because PostgreSQL could not move their rows.
        unreadable: claimed jobs that this node cannot decode.
    """

    def __init__(
        self, jobs: Iterable[ClaimedJob] = (), again: Mapping[str, float] | None = None, *, dead: Sequence[Expired] = ()
    ) -> None:
        super().__init__(jobs)
        self.again = again or {}
        self.dead = dead
        self.unreadable: list[Unreadable] = []


class _Partly(msgspec.Struct):
    """The result of ``jobqueue_internal.claim`` if a limit withheld jobs, or if a row could not be claimed."""

    jobs: list[ClaimedJob]
    again: dict[str, float | None]
    dead: list[Expired] = []


_jobs = msgspec.json.Decoder(list[ClaimedJob])
_partly = msgspec.json.Decoder(_Partly)
_job = msgspec.json.Decoder(ClaimedJob)


def read(text: str) -> Claimed:
    """Decode the result of ``jobqueue_internal.claim``; code/claim.sql describes the format."""
    try:
        if text.startswith("["):
            return Claimed(_jobs.decode(text))
        partly = _partly.decode(text)
        return Claimed(partly.jobs, _seconds(partly.again), dead=partly.dead)
    except Exception:  # noqa: BLE001 - DecodeError, RecursionError, MemoryError
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
    """Decode the columns whose types are certain, without the JSON documents: payload, options, and saved."""
    queue, job_id, kind, _, *numbers = elements(row)[:12]
    numbers = [number if re.fullmatch(r"-?[0-9.e+-]+|null", number) else "0" for number in numbers]  # Infinity is not JSON
    readable = _job.decode(f"[{','.join([queue, job_id, kind, 'null', *numbers])}]")
    reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(f"{error}".split()) or type(error).__name__
    return Unreadable(readable, reason)


def elements(text: str) -> list[str]:
    """Split the text of a JSON array or object at its top-level commas, without decoding any value."""
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
