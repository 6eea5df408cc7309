"""What every node does for all of them: take back the jobs of lost nodes, and let old ones go."""

from __future__ import annotations

import structlog
import trio

from jobqueue.engine.leases import Lease
from jobqueue.errors import DatabaseUnavailable, RefusedData
from jobqueue.metrics import Metrics
from jobqueue.storage.store import PRUNE_BATCH, RECOVER_BATCH, Store

PRUNE_INTERVAL = 3600.0
"""Seconds between two looks at partitions and retention."""

log = structlog.get_logger()


async def recover(store: Store, metrics: Metrics, *, judge: str | None) -> int:
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
        for job in jobs:
            kind_metrics = metrics.of(job.queue, job.kind)
            if job.outcome == "dead":
                kind_metrics.dead.inc()
                log.error("job died", job_id=job.id, kind=job.kind, queue=job.queue, attempt=job.attempt, reason="lease lost")
            else:
                kind_metrics.recovered.inc()
        total += len(jobs)
        if len(jobs) < RECOVER_BATCH:
            break
    if total:
        log.warning("jobs of lost nodes recovered", jobs=total)
    return total


async def run_recovery(
    store: Store, lease: Lease, metrics: Metrics, interval: float, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Recover now and then, every so many seconds, until cancelled."""
    task_status.started()
    while True:
        await trio.sleep(interval)
        try:
            await recover(store, metrics, judge=lease.node.id if lease.steady else None)
        except DatabaseUnavailable as error:
            log.warning("recovery failed", error=str(error))


async def run_pruning(
    store: Store, keep_finished: float, keep_dead: float, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Keep partitions ahead and let retention drop the old ones, and keys that nobody needs any more, until cancelled."""
    task_status.started()
    while True:
        try:
            dropped = await store.maintain(keep_finished=keep_finished, keep_dead=keep_dead)
            while await store.prune_keys() == PRUNE_BATCH:
                pass
        except (DatabaseUnavailable, RefusedData) as error:
            log.warning("pruning failed", error=str(error))
        else:
            if dropped:
                log.info("old finished jobs dropped", partitions=dropped)
        await trio.sleep(PRUNE_INTERVAL)
