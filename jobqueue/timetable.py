"""Cron schedules: parse them, and compute the ticks of their expressions.

Nothing here reads a clock: callers pass the database's time. Times are seconds since 1970.
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
from jobqueue.job import MAX_NAME_LENGTH, MAX_PAYLOAD_BYTES, Name, PathName, Priority, Retries, Timeout

MAX_CRON_LENGTH = 200
"""The maximum length of a cron expression, in characters."""

MISSED_AFTER = 60.0
"""For ``missed="skip"``: a tick that was not submitted within these seconds counts as missed."""

Missed = Literal["one", "skip", "all"]

FIVE_FIELDS = 5
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - CronSim gets no time zones here: see ARCHITECTURE.md
FIFTY_YEARS = 50 * 366 * 86_400
PROBE_SECONDS = 2 * 86_400
"""Since 1970, every zone has kept each of its offsets for longer than this."""

_SOME_TIME = 946_684_800
"""The year 2000. Any time works to test whether an expression has ticks."""


class CronSchedule(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A cron schedule, and the job that it submits at each tick.

    Attributes:
        name: the schedule's name, unique in a database.
        cron: five fields, or six with the second first, as ``cronsim`` parses them.
        timezone: the time zone of the expression.
        missed: which of several due ticks get a job: the latest ("one"), those of the last 60 seconds ("skip"), "all".
        payload: the payload of its jobs.
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
        Name, msgspec.Meta(description=f"a string of 1 to {MAX_NAME_LENGTH} characters: the IANA name of a time zone")
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
    """Parse a schedule; its kind defaults to its name.

    Raises:
        InvalidSchedule: a field is missing, unknown, of the wrong type or out of its range.
        UnprocessableSchedule: the expression or the time zone is invalid, or the payload cannot be stored.
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
    """The ticks of a cron expression in the local time of a time zone.

    When the clock changes, expressions with five fields that name hours and minutes behave as in Debian's cron. A skipped tick
    comes at the end of the gap, several skipped ticks come as one, and a repeated tick comes once. All other expressions follow
    the local clock: skipped ticks are left out, and repeated ticks come twice.

    Raises:
        UnprocessableSchedule: the time zone is unknown, or the expression is invalid.
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
                f"cron expression {cron!r} is invalid: {error}. Use five fields (minute, hour, day of the month, month, day of the"
                " week), or six with the second first",
                field="cron",
            ) from None

    def after(self, instant: float) -> float:
        """Return the first tick after a time.

        Raises:
            UnprocessableSchedule: there is no tick in the next 50 years.
        """
        return next(self.all_after(instant))

    def all_after(self, instant: float) -> Iterator[float]:
        """Yield the ticks after a time, in order.

        Raises:
            UnprocessableSchedule: there is no tick in the next 50 years.
        """
        after = math.floor(instant)
        yield from self._once(after) if self._once_a_day else self._on_the_wall(after)
        raise UnprocessableSchedule(
            f"cron expression {self._cron!r} has no tick in the next 50 years: correct its dates", field="cron"
        )

    def latest(self, since: float, until: float) -> float:
        """Return the last tick up to the time `until`. `since` is a tick that is not later than `until`."""
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
            if tick > (before := int(late.timestamp())):  # the clock skips this local time
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
        """Return the offset of local time from UTC, in seconds."""
        return int(cast("timedelta", datetime.fromtimestamp(instant, self._zone).utcoffset()).total_seconds())


def _wall(seconds: int) -> datetime:
    """Return a local time without a zone, from its seconds since 1970."""
    return EPOCH + timedelta(seconds=seconds)


class Due(NamedTuple):
    """The ticks to submit now, and the next one."""

    ticks: list[float]
    next_at: float


def due(timetable: Timetable, missed: Missed, next_at: float | None, now: float, limit: int) -> Due:
    """Compute the due ticks of a schedule.

    Args:
        timetable: the timetable of the schedule's expression.
        missed: the schedule's rule for ticks that were not submitted in time.
        next_at: the first tick that is not processed yet; None for a new schedule.
        now: the database's time.
        limit: the maximum number of ticks; the others are left to a later call.

    Raises:
        UnprocessableSchedule: the schedule has no next tick.
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
        return UTC  # this object has no clock changes to search for
    try:
        return cast("tzinfo", ZoneInfo(name))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UnprocessableSchedule(
            f"timezone {name!r} is unknown: use an IANA name such as Europe/Berlin", field="timezone"
        ) from None
