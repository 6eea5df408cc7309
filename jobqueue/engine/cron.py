"""Submit the jobs of cron schedules, each tick once: sleep until the next one, or until told of a change.

Every node does it, for all schedules of the database. The database says what is due, by its clock; the node computes the ticks from
that time, and none of its own; the database takes them from whoever comes first (`Store.move_schedules`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import structlog
import trio

from jobqueue import documents
from jobqueue.concurrency.routine import Routine
from jobqueue.concurrency.trouble import Trouble
from jobqueue.errors import HandlerError, InvalidSchedule, RefusedData
from jobqueue.metrics import Metrics
from jobqueue.storage.store import SCHEDULE_BATCH, DueSchedule, Move, Moved, Ranks, Store
from jobqueue.timetable import CronSchedule, Timetable, due

LOOK_INTERVAL = 15.0
"""Seconds after which a node looks at the schedules without a reason: for a change that nobody told of, a clock that was set."""

RETRY_INTERVAL = 1.0
"""Seconds until a look that found other nodes at the same schedules is repeated."""

TICKS_PER_TRANSACTION = 500
"""The most ticks that get their jobs in one transaction; more follow at once in the next."""

MAX_ERROR = 500
"""The longest error of a schedule, in characters."""

log = structlog.get_logger()


class Cron:
    """The ticks of all schedules.

    Args:
        source: the module whose schedules are declared here; None when there is none.
        declared: its schedules.
        on_submitted: called with the best rank of each queue that got jobs.
    """

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        *,
        source: str | None,
        declared: Sequence[CronSchedule],
        on_submitted: Callable[[Ranks], None],
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._source = source
        self._declared = declared
        self._on_submitted = on_submitted
        self.trouble = Trouble("cron", vital=True)
        self._routine = Routine(self._tick, self.trouble)
        self.run = self._routine.run

    async def reconcile(self) -> None:
        """Make the database's schedules of this source those that are declared.

        Raises:
            HandlerError: a name is taken by somebody else's schedule.
            DatabaseUnavailable: PostgreSQL is away.
        """
        if self._source is None:
            return
        taken = await self._store.reconcile_schedules(self._source, self._declared)
        for name, owner in taken.items():
            who = "was made over HTTP or in SQL: delete it there" if owner is None else f"is one of {owner}: change it there"
            raise HandlerError(f"schedule {name!r} of {self._source} exists already, and {who}, or give this one another name")

    def look(self) -> None:
        """Say that schedules may have changed."""
        self._routine.due_in(0)

    async def _tick(self) -> float:
        """Submit what is due; return the seconds until there is reason to look again."""
        found = await self._store.due_schedules()
        if not found.due:
            return _at_least_now(found.next_in)
        share = max(1, TICKS_PER_TRANSACTION // len(found.due))
        moves = []
        for schedule in found.due:
            moves.append(_move(schedule, found.at, share))
            await trio.lowlevel.checkpoint()  # each takes up to some milliseconds
        moved = await self._move(moves)
        if moved.names and len(found.due) == SCHEDULE_BATCH:
            return 0
        wait = _at_least_now(moved.next_in)
        # Of those that another node had first, nobody here knows when they are next.
        return wait if len(moved.names) == len(moves) else min(wait, RETRY_INTERVAL)

    async def _move(self, moves: list[Move]) -> Moved:
        try:
            moved = await self._store.move_schedules(moves)
        except RefusedData as error:
            if len(moves) > 1:
                return await self._move_each(moves)
            # A job that no table takes. Every node would meet it at every look: so it is shown, and left until it is changed.
            reason = documents.storable(str(error), MAX_ERROR)
            moves = [msgspec.structs.replace(moves[0], ticks=[], next_at=None, error=reason)]
            moved = await self._store.move_schedules(moves)
        for move in moves:
            if move.error is not None and move.name in moved.names:
                log.error("a schedule has no next tick", schedule=move.name, error=move.error)
        for (queue, kind), jobs in moved.submitted.items():
            self._metrics.of(queue, kind).submitted.inc(jobs)
        if moved.best:
            self._on_submitted(moved.best)
        return moved

    async def _move_each(self, moves: list[Move]) -> Moved:
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
    except Exception as wrong:  # noqa: BLE001 - such as a time that no calendar has: the other schedules go on
        error = documents.storable(f"its next tick cannot be computed: {wrong}", MAX_ERROR)
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
