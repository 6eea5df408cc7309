"""Admit blocked jobs when their concurrency key has room."""

from __future__ import annotations

import math
from collections.abc import Callable

from jobqueue.concurrency.routine import Routine
from jobqueue.concurrency.trouble import Trouble
from jobqueue.storage.store import ADMIT_BATCH, Ranks, Store


class KeyAdmission:
    """Admits blocked jobs. Every node does this for all queues. If several nodes find the same check, only one of them makes it.

    After the first time, the node asks the database for checks only after a notification. Every
    transaction that adds a check sends a notification. If a notification is lost, the promotion of
    scheduled jobs finds the check.

    Args:
        on_admitted: called with the best rank of each queue that received jobs.
    """

    def __init__(self, store: Store, *, on_admitted: Callable[[Ranks], None]) -> None:
        self._store = store
        self._on_admitted = on_admitted
        self.trouble = Trouble("admission", vital=True)
        self._routine = Routine(self._admit, self.trouble)
        self.run = self._routine.run
        self.due_in = self._routine.due_in

    async def _admit(self) -> float:
        """Make the checks that are due; return the seconds until the next one."""
        admission = await self._store.admit()
        if admission.best:
            self._on_admitted(admission.best)
        if admission.checks == ADMIT_BATCH:
            return 0
        return math.inf if admission.next_check is None else max(0.0, admission.next_check)
