"""Submit one job for each tick of each cron schedule.

Every node does this for all schedules. PostgreSQL's clock decides which schedules are due. The node
computes the ticks from that time, and the first node to store them wins (`ScheduleStore.move_schedules`).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import structlog
import trio

from jobqueue import documents
from jobqueue.concurrency.routine import Routine
from jobqueue.concurrency.trouble import Trouble
from jobqueue.engine.signals import Signals
from jobqueue.errors import HandlerError, InvalidSchedule, RefusedData
from jobqueue.metrics import Metrics
from jobqueue.storage.roles.schedule import SCHEDULE_BATCH, DueSchedule, Move, MovedSchedules, ScheduleStore
from jobqueue.timetable import CronSchedule, Timetable, due

LOOK_INTERVAL = 15.0
"""Seconds between checks if no event triggers one. These checks find changes without a notification, and a changed clock."""

RETRY_INTERVAL = 1.0
"""Seconds until the next check if other nodes were moving the same schedules."""

TICKS_PER_TRANSACTION = 500
"""Maximum number of ticks whose jobs are submitted in one transaction. The next transaction starts at once."""

MAX_ERROR = 500
"""Maximum length of a schedule's error, in characters."""

log = structlog.get_logger()


class Cron:
    """Submits the jobs of all schedules.

    Args:
        source: the module that declares schedules; None without one.
        declared: the schedules that the module declares.
    """

    def __init__(
        self,
        store: ScheduleStore,
        metrics: Metrics,
        signals: Signals,
        *,
        source: str | None,
        declared: Sequence[CronSchedule],
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._signals = signals
        self._source = source
        self._declared = declared
        self.trouble = Trouble("cron", vital=True)
        self._routine = Routine(self._tick, self.trouble)
        self.run = self._routine.run
        signals.schedules_changed.subscribe(self.look)
        signals.listening.subscribe(self.look)

    async def reconcile(self) -> None:
        """Replace the stored schedules of this source with the declared schedules.

        Raises:
            HandlerError: a declared name already belongs to another owner's schedule.
            DatabaseUnavailable: PostgreSQL is unavailable.
        """
        if self._source is None:
            return
        taken = await self._store.reconcile_schedules(self._source, self._declared)
        for name, owner in taken.items():
            who = "it was created over HTTP or SQL: delete it there" if owner is None else f"it belongs to {owner}: change it there"
            raise HandlerError(f"schedule {name!r} of {self._source} already exists, and {who}, or rename this schedule")

    def look(self) -> None:
        """Check the schedules now, because they may have changed."""
        self._routine.due_in(0)

    async def _tick(self) -> float:
        """Submit the jobs that are due; return the seconds until the next check."""
        found = await self._store.due_schedules()
        if not found.due:
            return _at_least_now(found.next_in)
        share = max(1, TICKS_PER_TRANSACTION // len(found.due))
        moves = []
        for schedule in found.due:
            moves.append(_move(schedule, found.at, share))
            await trio.lowlevel.checkpoint()  # the ticks of one schedule take up to a few milliseconds
        moved = await self._move(moves)
        if moved.names and len(found.due) == SCHEDULE_BATCH:
            return 0
        wait = _at_least_now(moved.next_in)
        # If another node moved a schedule first, this node does not know the schedule's next tick.
        return wait if len(moved.names) == len(moves) else min(wait, RETRY_INTERVAL)

    async def _move(self, moves: list[Move]) -> MovedSchedules:
        try:
            moved = await self._store.move_schedules(moves)
        except RefusedData as error:
            if len(moves) > 1:
                return await self._move_each(moves)
            # PostgreSQL rejects the job, and would reject it on every node and at every check. So
            # the schedule stores the error and stops until somebody changes it.
            reason = documents.storable(str(error), MAX_ERROR)
            moves = [msgspec.structs.replace(moves[0], ticks=[], next_at=None, error=reason)]
            moved = await self._store.move_schedules(moves)
        for move in moves:
            if move.error is not None and move.name in moved.names:
                log.error("a schedule has no next tick", schedule=move.name, error=move.error)
        for (queue, kind), jobs in moved.submitted.items():
            self._metrics.of(queue, kind).submitted.inc(jobs)
        if moved.best:
            self._signals.jobs_available.publish(moved.best)
        return moved

    async def _move_each(self, moves: list[Move]) -> MovedSchedules:
        names: set[str] = set()
        for move in moves:
            moved = await self._move([move])
            names |= moved.names
        return moved._replace(names=names)


def _move(schedule: DueSchedule, now: float, limit: int) -> Move:
    ticks: list[float] = []
    next_at: float | None = None
    error: str | None = None
    try:
        ticks, next_at = due(Timetable(schedule.cron, schedule.timezone), schedule.missed, schedule.next_at, now, limit)
    except InvalidSchedule as invalid:
        error = documents.storable(str(invalid), MAX_ERROR)
    except Exception as wrong:  # noqa: BLE001 - for example, a time outside of the calendar; the other schedules must continue
        error = documents.storable(f"the next tick cannot be computed: {wrong}", MAX_ERROR)
    return Move(
        name=schedule.name,
        cron=schedule.cron,
        timezone=schedule.timezone,
        missed=schedule.missed,
        expected=schedule.next_at,
        ticks=ticks,
        next_at=next_at,
        error=error,
    )


def _at_least_now(next_in: float | None) -> float:
    return LOOK_INTERVAL if next_in is None else min(LOOK_INTERVAL, max(0.0, next_in))
