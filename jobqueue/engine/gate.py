"""Let jobs with a concurrency key through when their key has room: sleep until the next check is due, or until told of one."""

from __future__ import annotations

import math
from collections.abc import Callable

import structlog
import trio

from jobqueue.errors import DatabaseUnavailable, RefusedData
from jobqueue.storage.store import ADMIT_BATCH, Ranks, Store

RETRY_INTERVAL = 1.0
"""Seconds until an admission that failed is tried again."""

REFUSED_INTERVAL = 10.0
"""Seconds until one that PostgreSQL refused is tried again."""

log = structlog.get_logger()


class Gate:
    """The admission of blocked jobs. Every node does it for all queues, one at a time, and whoever comes first has the checks.

    It asks the database nothing by itself: who enters a check tells of it, and what nobody told of comes to light in the promotion
    of scheduled jobs, which looks here too.

    Args:
        on_admitted: called with the best rank of each queue that got jobs.
    """

    def __init__(self, store: Store, *, on_admitted: Callable[[Ranks], None]) -> None:
        self._store = store
        self._on_admitted = on_admitted
        self._sleep = trio.CancelScope()

    def due_in(self, seconds: float) -> None:
        """Say that there is a check to make in so many seconds: the sleep ends by then."""
        self._sleep.deadline = min(self._sleep.deadline, trio.current_time() + seconds)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Admit until cancelled."""
        task_status.started()
        while True:
            with self._sleep:
                await trio.sleep_forever()
            # A new scope before the look: what is told of during it shortens the sleep after it.
            self._sleep = trio.CancelScope()
            self.due_in(await self._admit())

    async def _admit(self) -> float:
        """Make the checks that are due; return the seconds until there is reason to look again."""
        try:
            admission = await self._store.admit()
        except DatabaseUnavailable as error:
            log.warning("admission failed", error=str(error))
            return RETRY_INTERVAL
        except RefusedData as error:
            log.error("admission refused by the database", error=str(error))  # noqa: TRY400 - one line says it all
            return REFUSED_INTERVAL
        if admission.best:
            self._on_admitted(admission.best)
        if admission.checks == ADMIT_BATCH:
            return 0
        return math.inf if admission.next_check is None else max(0.0, admission.next_check)
