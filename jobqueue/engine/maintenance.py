"""What every node does for all of them: take back the jobs of lost nodes, and let old ones go."""

from __future__ import annotations

import structlog

from jobqueue.concurrency.routine import Routine
from jobqueue.concurrency.trouble import Trouble
from jobqueue.engine.hooks import Hooks
from jobqueue.engine.leases import Lease
from jobqueue.storage.store import PRUNE_BATCH, RECOVER_BATCH, Store

PRUNE_INTERVAL = 3600.0
"""Seconds between two looks at partitions and retention."""

PRUNE_PAUSE = 60.0
"""The most seconds between two tries while that fails."""

log = structlog.get_logger()


def recovery(store: Store, lease: Lease, hooks: Hooks, interval: float) -> Routine:
    """Take back the jobs of lost nodes every `interval` seconds.

    A node judges others, which is to end a lease that has run out, only while its own lease is steady.
    """

    async def recover() -> float:
        jobs = await store.recover(judge=lease.node.id if lease.steady else None)
        hooks.recovered(jobs)
        if jobs:
            log.warning("jobs of lost nodes recovered", jobs=len(jobs))
        return 0 if len(jobs) == RECOVER_BATCH else interval

    return Routine(recover, Trouble("recovery", vital=True))


def pruning(store: Store, *, keep_finished: float, keep_cancelled: float, keep_dead: float) -> Routine:
    """Keep partitions ahead, drop the old ones, and delete old dead letters and keys.

    Args:
        keep_finished: seconds for which jobs that succeeded are kept.
        keep_cancelled: the same for cancelled jobs.
        keep_dead: the same for dead letters.
    """

    async def prune() -> float:
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
        return PRUNE_INTERVAL

    return Routine(prune, Trouble("pruning", longest_pause=PRUNE_PAUSE))
