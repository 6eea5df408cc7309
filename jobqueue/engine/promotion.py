"""Promote scheduled jobs to pending when they are due."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from jobqueue.concurrency.routine import Routine
from jobqueue.concurrency.trouble import Trouble
from jobqueue.storage.claims import Expired
from jobqueue.storage.store import PROMOTE_BATCH, Ranks, Store

LOCKED_INTERVAL = 0.1
"""If a job is still scheduled this many seconds after it was due, another transaction holds its lock.
The next check comes after the same number of seconds."""


class Promoter:
    """Promotes scheduled jobs. Every node does this, and the first one to lock a job promotes it.

    Args:
        poll_interval: the longest time between checks, in seconds. So the node also finds jobs that no notification announced.
        on_promoted: called with the best rank of each queue that received jobs.
        on_expired: called with the jobs that died, because their time to start had passed or their row cannot be moved.
        on_check: called with the seconds until the next check of a concurrency key, if there is one.
    """

    def __init__(
        self,
        store: Store,
        *,
        poll_interval: float,
        on_promoted: Callable[[Ranks], None],
        on_expired: Callable[[Sequence[Expired]], None],
        on_check: Callable[[float], None],
    ) -> None:
        self._store = store
        self._poll_interval = poll_interval
        self._on_promoted = on_promoted
        self._on_expired = on_expired
        self._on_check = on_check
        self.trouble = Trouble("promotion", vital=True)
        self._routine = Routine(self._promote, self.trouble)
        self.run = self._routine.run
        self.due_in = self._routine.due_in

    async def _promote(self) -> float:
        """Promote the jobs that are due; return the seconds until the next check."""
        promotion = await self._store.promote()
        if promotion.best:
            self._on_promoted(promotion.best)
        if promotion.next_check is not None:
            self._on_check(max(0.0, promotion.next_check))
        if promotion.expired:
            self._on_expired(promotion.expired)
        if promotion.jobs == PROMOTE_BATCH or len(promotion.expired) >= PROMOTE_BATCH:
            return 0
        next_due = math.inf if promotion.next_due is None else promotion.next_due
        if next_due < -LOCKED_INTERVAL and not (promotion.jobs or promotion.expired):
            return LOCKED_INTERVAL
        return min(self._poll_interval, max(0.0, next_due))
