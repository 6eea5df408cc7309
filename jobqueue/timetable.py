"""Cron schedules: what one says, and the times that its expression means.

No clock is asked here: whoever wants to know what is due brings the time, which is the database's. Times are seconds since 1970.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
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

FIVE_FIELDS = 5
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - CronSim knows no time zones here: see ARCHITECTURE.md
FIFTY_YEARS = 50 * 366 * 86_400
PROBE_SECONDS = 2 * 86_400
"""Each zone has kept each of its offsets since 1970 for longer than this."""

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

    When the clock changes, five fields that name hours and minutes do as in Debian's cron: a tick that is skipped comes at the
    end of the gap, several of them as one, and a tick that would come twice comes once. All other expressions go by the clock on
    the wall: what is skipped is left out, and what comes twice ticks twice.

    Raises:
        UnprocessableSchedule: there is no such time zone, or the expression cannot be read.
    """

    def __init__(self, cron: str, timezone: str) -> None:
        self._cron = cron
        self._zone = _zone(timezone)
        fields = cron.split()
        self._once_a_day = len(fields) == FIVE_FIELDS and not fields[0].startswith("*") and not fields[1].startswith("*")
        try:
            CronSim(cron, EPOCH)
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
        after = math.floor(instant)
        yield from self._once(after) if self._once_a_day else self._on_the_wall(after)
        raise UnprocessableSchedule(f"cron {self._cron!r} has no tick in the next fifty years", field="cron")

    def latest(self, since: float, until: float) -> float:
        """Return the last tick up to a time; `since` is one, and not after it."""
        tick, none_after = since, until
        while (following := self.after(tick)) <= until:
            tick = following
            middle = math.floor((tick + none_after) / 2)
            if (later := self.after(middle)) <= until:
                tick = later
            else:
                none_after = middle
        return tick

    def _once(self, after: int) -> Iterator[float]:
        for wall in CronSim(self._cron, _wall(after + self._offset(after))):
            early, late = (wall.replace(tzinfo=self._zone, fold=fold) for fold in (0, 1))
            tick = int(early.timestamp())
            if tick > (before := int(late.timestamp())):  # the clock skips it
                tick = self._change(before, tick) or tick
            if tick > after:
                yield float(tick)
                after = tick

    def _on_the_wall(self, after: int) -> Iterator[float]:
        give_up_at = after + FIFTY_YEARS
        while after < give_up_at:
            offset = self._offset(after + 1)
            for wall in CronSim(self._cron, _wall(after + offset)):
                tick = int(wall.replace(tzinfo=UTC).timestamp()) - offset
                if changed := self._change(after + 1, tick):
                    after = changed - 1
                    break
                yield float(tick)
                after = tick
                give_up_at = after + FIFTY_YEARS
            else:
                return

    def _change(self, begin: int, end: int) -> int | None:
        """Return the first time after ``begin`` and up to ``end`` at which the zone has another offset; None if there is none."""
        if self._zone is UTC:
            return None
        offset = self._offset(begin)
        while begin < end:
            probe = min(begin + PROBE_SECONDS, end)
            if self._offset(probe) != offset:
                return begin + 1 + bisect_left(range(begin + 1, probe), True, key=lambda at: self._offset(at) != offset)
            begin = probe
        return None

    def _offset(self, instant: int) -> int:
        """Return by how many seconds local time is ahead of UTC."""
        return int(cast("timedelta", datetime.fromtimestamp(instant, self._zone).utcoffset()).total_seconds())


def _wall(seconds: int) -> datetime:
    """Return what a clock on the wall shows, from its seconds since 1970."""
    return EPOCH + timedelta(seconds=seconds)


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
        return UTC  # which has no changes of the clock to look for
    try:
        return cast("tzinfo", ZoneInfo(name))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UnprocessableSchedule(f"timezone {name!r} is not known: give one like Europe/Berlin", field="timezone") from None
