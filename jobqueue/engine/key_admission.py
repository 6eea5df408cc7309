"""Admit blocked jobs when their concurrency key has room."""

from __future__ import annotations

import math

from jobqueue.concurrency.routine import Routine
from jobqueue.concurrency.trouble import Trouble
from jobqueue.engine.signals import Signals
from jobqueue.storage.roles.schedule import ADMIT_BATCH, ScheduleStore


class KeyAdmission:
    """Admits blocked jobs. Every node does this for all queues. If several nodes find the same check, only one of them makes it.

    After the first time, the node asks the database for checks only after a notification. Every
    transaction that adds a check sends a notification. If a notification is lost, the promotion of
    scheduled jobs finds the check.
    """

    def __init__(self, store: ScheduleStore, signals: Signals) -> None:
        self._store = store
        self._signals = signals
        self.trouble = Trouble("admission", vital=True)
        self._routine = Routine(self._admit, self.trouble)
        self.run = self._routine.run
        signals.checks_due.subscribe(self._routine.due_in)

    async def _admit(self) -> float:
        """Make the checks that are due; return the seconds until the next one."""
        admission = await self._store.admit()
        if admission.best:
            self._signals.jobs_available.publish(admission.best)
        if admission.checks == ADMIT_BATCH:
            return 0
        return math.inf if admission.next_check is None else max(0.0, admission.next_check)
