"""Promote scheduled jobs to pending when they are due."""

from __future__ import annotations

import math

from jobqueue.concurrency.routine import Routine
from jobqueue.concurrency.trouble import Trouble
from jobqueue.engine.signals import Signals
from jobqueue.storage.roles.schedule import PROMOTE_BATCH, ScheduleStore

LOCKED_INTERVAL = 0.1
"""If a job is still scheduled this many seconds after it was due, another transaction holds its lock.
The next check comes after the same number of seconds."""


class Promoter:
    """Promotes scheduled jobs. Every node does this, and the first one to lock a job promotes it.

    Args:
        poll_interval: the longest time between checks, in seconds. So the node also finds jobs that no notification announced.
    """

    def __init__(self, store: ScheduleStore, signals: Signals, *, poll_interval: float) -> None:
        self._store = store
        self._signals = signals
        self._poll_interval = poll_interval
        self.trouble = Trouble("promotion", vital=True)
        self._routine = Routine(self._promote, self.trouble)
        self.run = self._routine.run
        signals.jobs_due.subscribe(self._routine.due_in)
        signals.listening.subscribe(lambda: self._routine.due_in(0))

    async def _promote(self) -> float:
        """Promote the jobs that are due; return the seconds until the next check."""
        promotion = await self._store.promote()
        if promotion.best:
            self._signals.jobs_available.publish(promotion.best)
        if promotion.next_check is not None:
            self._signals.checks_due.publish(max(0.0, promotion.next_check))
        if promotion.expired:
            self._signals.jobs_expired.publish(promotion.expired)
        if promotion.jobs == PROMOTE_BATCH or len(promotion.expired) >= PROMOTE_BATCH:
            return 0
        next_due = math.inf if promotion.next_due is None else promotion.next_due
        if next_due < -LOCKED_INTERVAL and not (promotion.jobs or promotion.expired):
            return LOCKED_INTERVAL
        return min(self._poll_interval, max(0.0, next_due))
