"""The store's verbs to make jobs runnable when they are due: delayed jobs, jobs with concurrency keys, and cron schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from jobqueue.storage.claims import Expired
from jobqueue.storage.roles.run import Ranks
from jobqueue.timetable import CronSchedule, Missed

PROMOTE_BATCH = 1_000
"""Maximum number of jobs that one call promotes, and that it lets expire in each state."""

ADMIT_BATCH = 1_000
"""Maximum number of checks in one call."""

SCHEDULE_BATCH = 500
"""Maximum number of schedules in one call."""


class Promotion(msgspec.Struct, frozen=True):
    """The result of `ScheduleStore.promote`.

    Attributes:
        jobs: the number of jobs that became pending.
        best: their best ranks.
        next_due: seconds until the next job is due or expires; None if there is none.
        expired: the jobs that died because they expired.
        next_check: seconds until `ScheduleStore.admit` has work; None if no check is pending.
    """

    jobs: int
    best: Ranks
    next_due: float | None
    expired: Sequence[Expired] = ()
    next_check: float | None = None


class Admission(msgspec.Struct, frozen=True):
    """The result of `ScheduleStore.admit`.

    Attributes:
        checks: the number of checks made.
        best: the best ranks of the jobs that became pending.
        next_check: seconds until the next check is due; None if there is none.
    """

    checks: int
    best: Ranks
    next_check: float | None


class DueSchedule(msgspec.Struct, array_like=True, frozen=True):
    """A schedule with due ticks.

    Attributes:
        name, cron, timezone, missed: see `CronSchedule`.
        next_at: the first due tick, in seconds since 1970; None if it has not been computed yet.
    """

    name: str
    cron: str
    timezone: str
    missed: Missed
    next_at: float | None


class DueSchedules(NamedTuple):
    """The result of `ScheduleStore.due_schedules`.

    Attributes:
        at: the database's time, in seconds since 1970.
        due: the due schedules.
        next_in: seconds until the next tick of the other schedules; None if there is none.
    """

    at: float
    due: list[DueSchedule]
    next_in: float | None


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """Moves a schedule to its next tick. Times are seconds since 1970.

    Attributes:
        name: the schedule.
        cron, timezone, missed, expected: the values of the `DueSchedule`; `expected` is its `next_at`. If a value has changed since
            then, the schedule is not moved.
        ticks: the ticks for which to submit a job.
        next_at: the first tick after these; None if there is none.
        error: why there is no next tick; None if there is one.
    """

    name: str
    cron: str
    timezone: str
    missed: Missed
    expected: float | None
    ticks: list[float]
    next_at: float | None
    error: str | None = None


class MovedSchedules(NamedTuple):
    """The result of `ScheduleStore.move_schedules`.

    Attributes:
        names: the schedules that the call moved.
        best: the best rank of each queue that received jobs.
        next_in: seconds until the next tick; None if there is none. It ignores schedules that the call should have moved, but did
            not.
        submitted: the number of submitted jobs, by queue and kind.
    """

    names: set[str]
    best: Ranks
    next_in: float | None
    submitted: Mapping[tuple[str, str], int]


class ScheduleStore(Protocol):
    """Make jobs runnable when they are due: delayed jobs, jobs with concurrency keys, and cron schedules."""

    async def promote(self) -> Promotion:
        """Make due jobs pending, and expired jobs dead, at most `PROMOTE_BATCH` in each state."""

    async def admit(self) -> Admission:
        """Run at most `ADMIT_BATCH` due checks of concurrency keys. Blocked jobs of keys below their limits become pending."""

    async def due_schedules(self) -> DueSchedules:
        """Find schedules that have due ticks, at most `SCHEDULE_BATCH`."""

    async def move_schedules(self, moves: Sequence[Move]) -> MovedSchedules:
        """Move schedules to their next ticks and submit the jobs of the due ticks.

        This skips schedules that another node is moving, or that have changed.

        Raises:
            RefusedData: PostgreSQL rejected one of the jobs.
        """

    async def reconcile_schedules(self, source: str, schedules: Sequence[CronSchedule]) -> dict[str, str | None]:
        """Replace the schedules of a source, unless another source owns one of the names.

        Returns:
            The names that other sources own, with their sources. If the result is not empty, nothing was changed.
        """
