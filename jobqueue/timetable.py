"""Cron schedules: what one says, and the times that its expression means.

No clock is asked here: whoever wants to know what is due brings the time, which is the database's. Times are seconds since 1970.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, tzinfo
from itertools import chain
from typing import Annotated, Any, Literal, NamedTuple, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from cronsim import CronSim, CronSimError

from jobqueue import documents, fields
from jobqueue.errors import InvalidSchedule, UnprocessableSchedule
from jobqueue.job import (
    MAX_NAME_LENGTH,
    MAX_PAYLOAD_BYTES,
    Name,
    PathName,
    Priority,
    Retries,
    Timeout,
)

MAX_CRON_LENGTH = 200
"""The longest cron expression, in characters."""

MISSED_AFTER = 60.0
"""Seconds after which a tick that nobody has submitted counts as missed, for ``missed="skip"``."""

Missed = Literal["one", "skip", "all"]

_SOME_TIME = 946_684_800
"""The year 2000: whether an expression ever matches can be told from any time on."""


class CronSchedule(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Which job is submitted when.

    Attributes:
        name: what there can be only one of in a database.
        cron: five fields, or six with the seconds first, as ``cronsim`` reads them.
        timezone: an IANA name, whose local time the expression means.
        missed: which of several due ticks get a job: the latest ("one"), those of the last `MISSED_AFTER` seconds ("skip"), "all".
        payload: as JSON.
    """

    name: PathName
    cron: Annotated[
        str,
        msgspec.Meta(
            min_length=1,
            max_length=MAX_CRON_LENGTH,
            description=f'a string of 1 to {MAX_CRON_LENGTH} characters, such as "*/5 * * * *" for every five minutes',
            examples=["*/5 * * * *"],
        ),
    ]
    timezone: Annotated[
        Name, msgspec.Meta(description=f"the name of a time zone, a string of 1 to {MAX_NAME_LENGTH} characters")
    ] = "UTC"
    missed: Annotated[Missed, msgspec.Meta(description='one of "one", "skip" and "all"')] = "one"
    kind: Name
    payload: Annotated[msgspec.Raw, msgspec.Meta(description="any JSON")] = msgspec.field(
        default_factory=lambda: msgspec.Raw(b"{}")
    )
    queue: PathName = "default"
    priority: Priority = 0
    max_retries: Retries | None = None
    timeout: Timeout | None = None


def schedule_of(given: Mapping[str, Any]) -> CronSchedule:
    """Make a schedule of what somebody said about it; its kind is its name unless said otherwise.

    Raises:
        InvalidSchedule: a field is missing, unknown, of the wrong type or out of its range.
        UnprocessableSchedule: the text of a field means nothing, or its payload cannot be stored.
    """
    payload = given.get("payload")
    try:
        document = documents.encode({} if payload is None else payload, limit=MAX_PAYLOAD_BYTES)
    except documents.RefusedDocument as error:
        raise UnprocessableSchedule(f"payload cannot be stored: {error}", field="payload") from None
    said = {**given, "payload": msgspec.Raw(document)}
    if "name" in given:
        said.setdefault("kind", given["name"])
    schedule = fields.read(said, CronSchedule, what="a schedule", refuse=InvalidSchedule)
    Timetable(schedule.cron, schedule.timezone).after(_SOME_TIME)
    return schedule


class Timetable:
    """The ticks of one cron expression, by the local time of one time zone.

    Daylight saving is as in Debian's cron (`cronsim`'s documentation has it): five fields that name hours and minutes tick at
    once after an hour that is left out, and once in an hour that comes twice; all others go by the clock on the wall.

    Raises:
        UnprocessableSchedule: there is no such time zone, or the expression cannot be read.
    """

    def __init__(self, cron: str, timezone: str) -> None:
        self._cron = cron
        self._zone = _zone(timezone)
        try:
            CronSim(cron, self._local(_SOME_TIME))
        except CronSimError as error:
            raise UnprocessableSchedule(
                f"cron {cron!r} cannot be read: {error}. It takes five fields (minute, hour, day of the month, month, day of the"
                " week), or six with the second first",
                field="cron",
            ) from None

    def after(self, instant: float) -> float:
        """Return the first tick after a time.

        Raises:
            UnprocessableSchedule: there is none in fifty years.
        """
        return next(self.all_after(instant))

    def all_after(self, instant: float) -> Iterator[float]:
        """Yield the ticks after a time, one after the other.

        Raises:
            UnprocessableSchedule: there is none in the next fifty years.
        """
        for tick in CronSim(self._cron, self._local(instant)):
            # In an hour that comes twice, five fields may tick before the time that they were asked about.
            if (seconds := tick.timestamp()) > instant:
                yield seconds
        raise UnprocessableSchedule(f"cron {self._cron!r} means no time in the next fifty years", field="cron")

    def latest(self, since: float, until: float) -> float:
        """Return the last tick up to a time; `since` is one, and not after it."""
        tick = since
        if self.after(since) > until:
            return tick
        for candidate in CronSim(self._cron, self._local(math.floor(until) + 1), reverse=True):
            if (seconds := candidate.timestamp()) <= until:
                tick = max(since, seconds)
                break
        # Backwards, five fields leave out ticks of an hour that comes twice: from there on once more forwards.
        for later in self.all_after(tick):
            if later > until:
                break
            tick = later
        return tick

    def _local(self, instant: float) -> datetime:
        return datetime.fromtimestamp(math.floor(instant), self._zone)


class Due(NamedTuple):
    """The ticks that are to be submitted now, and the next one."""

    ticks: list[float]
    next_at: float


def due(timetable: Timetable, missed: Missed, next_at: float | None, now: float, limit: int) -> Due:
    """Tell what is due of a schedule.

    Args:
        timetable: of its expression.
        missed: its rule for ticks that nobody submitted in time.
        next_at: its first tick that has not been looked at; None for a schedule that begins now.
        now: the database's time.
        limit: the most ticks; the others are left for another time.

    Raises:
        UnprocessableSchedule: it has no next tick.
    """
    if next_at is None:
        return Due([], timetable.after(now))
    first = next_at
    if missed == "one":
        first = timetable.latest(next_at, now)
    elif missed == "skip" and next_at < now - MISSED_AFTER:
        first = timetable.after(math.ceil(now - MISSED_AFTER) - 1)
    ticks: list[float] = []
    upcoming = chain([first], timetable.all_after(first))
    while (tick := next(upcoming)) <= now and len(ticks) < limit:
        ticks.append(tick)
    return Due(ticks, tick)


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC  # for which `cronsim` need not look for changes of the clock
    try:
        return cast("tzinfo", ZoneInfo(name))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UnprocessableSchedule(f"timezone {name!r} is not known: give one like Europe/Berlin", field="timezone") from None
