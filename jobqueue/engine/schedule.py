"""Move due jobs to pending, on time: sleep until the next one is due, or until told of an earlier one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from jobqueue.concurrency.routine import Routine
from jobqueue.concurrency.trouble import Trouble
from jobqueue.storage.claims import Expired
from jobqueue.storage.store import PROMOTE_BATCH, Ranks, Store

LOCKED_INTERVAL = 0.1
"""What is due for so many seconds and could not be moved is held by somebody's transaction: the next look is as many later."""


class Schedule:
    """The promotion of scheduled jobs; every node does it, and whoever comes first has them.

    Args:
        poll_interval: the longest sleep, in seconds: what nobody told of is found then.
        on_promoted: called with the best rank of each queue that got jobs.
        on_expired: called with the jobs that died: their time to be started was over, or their row cannot be moved.
        on_check: called with the seconds until the next check of a concurrency key is due, where there is one.
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
        """Promote what is due; return the seconds until there is reason to look again."""
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
