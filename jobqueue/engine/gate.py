"""Let jobs with a concurrency key through when their key has room: sleep until the next check is due, or until told of one."""

from __future__ import annotations

import math
from collections.abc import Callable

from jobqueue.concurrency.routine import Routine
from jobqueue.concurrency.trouble import Trouble
from jobqueue.storage.store import ADMIT_BATCH, Ranks, Store


class Gate:
    """The admission of blocked jobs. Every node does it for all queues, one at a time, and whoever comes first has the checks.

    After its first look it asks the database only when told: whoever enters a check notifies it. The promotion of scheduled jobs,
    which looks at the checks too, finds the others.

    Args:
        on_admitted: called with the best rank of each queue that got jobs.
    """

    def __init__(self, store: Store, *, on_admitted: Callable[[Ranks], None]) -> None:
        self._store = store
        self._on_admitted = on_admitted
        self.trouble = Trouble("admission", vital=True)
        self._routine = Routine(self._admit, self.trouble)
        self.run = self._routine.run
        self.due_in = self._routine.due_in

    async def _admit(self) -> float:
        """Make the checks that are due; return the seconds until there is reason to look again."""
        admission = await self._store.admit()
        if admission.best:
            self._on_admitted(admission.best)
        if admission.checks == ADMIT_BATCH:
            return 0
        return math.inf if admission.next_check is None else max(0.0, admission.next_check)
