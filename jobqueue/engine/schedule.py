"""Move due jobs to pending, on time: sleep until the next one is due, or until told of an earlier one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import structlog
import trio

from jobqueue.errors import DatabaseUnavailable, RefusedData
from jobqueue.storage.store import PROMOTE_BATCH, Expired, Ranks, Store

RETRY_INTERVAL = 1.0
"""Seconds until a promotion that failed is tried again."""

LOCKED_INTERVAL = 0.1
"""What is due for so many seconds and could not be moved is held by somebody's transaction: the next look is as many later."""

log = structlog.get_logger()


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
        self._sleep = trio.CancelScope()

    def due_in(self, seconds: float) -> None:
        """Say that a job is due in so many seconds: the sleep ends by then."""
        self._sleep.deadline = min(self._sleep.deadline, trio.current_time() + seconds)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Promote until cancelled."""
        task_status.started()
        while True:
            # A new scope before the look: what is told of during it shortens the sleep after it.
            self._sleep = trio.CancelScope()
            self.due_in(await self._promote())
            with self._sleep:
                await trio.sleep_forever()

    async def _promote(self) -> float:
        """Promote what is due; return the seconds until there is reason to look again."""
        try:
            promotion = await self._store.promote()
        except DatabaseUnavailable as error:
            log.warning("promotion failed", error=str(error))
            return min(self._poll_interval, RETRY_INTERVAL)
        except RefusedData as error:
            # A row that the schema should not have let in. Every node would die of it in turn; so none does.
            log.error("promotion refused by the database", error=str(error))  # noqa: TRY400 - one line says it all
            return max(self._poll_interval, RETRY_INTERVAL)
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
