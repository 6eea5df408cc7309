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


async def run_recovery(
    store: Store, lease: Lease, hooks: Hooks, interval: float, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Recover now and then, every so many seconds, until cancelled."""
    task_status.started()
    while True:
        await trio.sleep(interval)
        try:
            await recover(store, hooks, judge=lease.node.id if lease.steady else None)
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
            done = await store.maintain(keep_finished=keep_finished, keep_cancelled=keep_cancelled)
            if done.dropped:
                log.info("old finished jobs dropped", partitions=done.dropped)
            if done.failed:
                log.warning("partitions cannot be created or dropped: old jobs are deleted in batches instead", failed=done.failed)
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
