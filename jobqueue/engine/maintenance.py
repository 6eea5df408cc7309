"""What every node does for all of them: take back the jobs of lost nodes, and let old ones go."""

from __future__ import annotations

import structlog
import trio

from jobqueue.engine.hooks import Hooks
from jobqueue.engine.leases import Lease
from jobqueue.errors import DatabaseUnavailable, RefusedData
from jobqueue.storage.store import PRUNE_BATCH, RECOVER_BATCH, Store

PRUNE_INTERVAL = 3600.0
"""Seconds between two looks at partitions and retention."""

log = structlog.get_logger()


async def recover(store: Store, hooks: Hooks, *, judge: str | None) -> int:
    """Take back the jobs of every lost node; return how many.

    Args:
        judge: see `Store.recover`.

    Raises:
        DatabaseUnavailable: PostgreSQL is away.
    """
    total = 0
    while True:
        try:
            jobs = await store.recover(judge=judge)
        except RefusedData as error:
            # A row that no other table takes. Every node would die of it in turn, or not start at all; so none does.
            log.error("recovery refused by the database", error=str(error))  # noqa: TRY400 - one line says it all
            break
        hooks.recovered(jobs)
        total += len(jobs)
        if len(jobs) < RECOVER_BATCH:
            break
    if total:
        log.warning("jobs of lost nodes recovered", jobs=total)
    return total


class Recovery:
    """Recovers every so many seconds, and at once when a node is known to be lost."""

    def __init__(self, store: Store, lease: Lease, hooks: Hooks, interval: float) -> None:
        self._store = store
        self._lease = lease
        self._hooks = hooks
        self._interval = interval
        self._hurry = trio.Event()

    def soon(self) -> None:
        """Recover now: a node is lost."""
        self._hurry.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Recover until cancelled."""
        task_status.started()
        while True:
            with trio.move_on_after(self._interval):
                await self._hurry.wait()
            self._hurry = trio.Event()
            try:
                await recover(self._store, self._hooks, judge=self._lease.node.id if self._lease.steady else None)
            except DatabaseUnavailable as error:
                log.warning("recovery failed", error=str(error))


async def run_pruning(
    store: Store,
    keep_finished: float,
    keep_cancelled: float,
    keep_dead: float,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Keep partitions ahead, let retention drop the old ones, and delete old dead letters and keys, until cancelled."""
    task_status.started()
    while True:
        try:
            dropped = await store.maintain(keep_finished=keep_finished, keep_cancelled=keep_cancelled)
            if dropped:
                log.info("old finished jobs dropped", partitions=dropped)
            deleted = 0
            while pruned := await store.prune(keep_finished=keep_finished, keep_cancelled=keep_cancelled, keep_dead=keep_dead):
                deleted += pruned
            if deleted:
                log.info("old dead letters deleted", jobs=deleted)
            while await store.prune_keys() == PRUNE_BATCH:
                pass
        except (DatabaseUnavailable, RefusedData) as error:
            log.warning("pruning failed", error=str(error))
        await trio.sleep(PRUNE_INTERVAL)
