"""Maintenance that every node does for all nodes: recover the jobs of lost nodes, and delete old jobs."""

from __future__ import annotations

from contextlib import suppress

import structlog
import trio

from jobqueue.concurrency.routine import Routine
from jobqueue.concurrency.trouble import Trouble
from jobqueue.engine.leases import Lease
from jobqueue.engine.signals import Signals
from jobqueue.errors import DatabaseUnavailable
from jobqueue.storage.roles import Store
from jobqueue.storage.roles.run import RECOVER_BATCH, RunStore
from jobqueue.storage.roles.upkeep import PRUNE_BATCH, UpkeepStore

PRUNE_INTERVAL = 3600.0
"""Seconds between two checks of partitions and retention."""

PRUNE_PAUSE = 60.0
"""Maximum interval between two attempts while pruning fails, in seconds."""

SCHEMA_CHECK_INTERVAL = 5.0
"""Seconds between two checks that the database's schema still supports this node."""

log = structlog.get_logger()


async def watch_schema(store: Store, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Check the schema until it no longer supports this node, because an upgrade has been finished.

    Raises:
        SchemaVersionError: the schema needs newer nodes. This ends the node in the usual order.
    """
    task_status.started()
    while True:
        await trio.sleep(SCHEMA_CHECK_INTERVAL)
        with suppress(DatabaseUnavailable):
            await store.require_schema()


def recovery(store: RunStore, lease: Lease, signals: Signals, interval: float) -> Routine:
    """Recover the jobs of lost nodes every `interval` seconds.

    A node ends expired leases of other nodes only while its own lease is steady.
    """

    async def recover() -> float:
        jobs = await store.recover(judge=lease.node.id if lease.steady else None)
        signals.jobs_recovered.publish(jobs)
        if jobs:
            log.warning("jobs of lost nodes recovered", jobs=len(jobs))
        return 0 if len(jobs) == RECOVER_BATCH else interval

    routine = Routine(recover, Trouble("recovery", vital=True))
    signals.node_lost.subscribe(lambda: routine.due_in(0))
    return routine


def pruning(store: UpkeepStore, *, keep_finished: float, keep_cancelled: float, keep_dead: float) -> Routine:
    """Create partitions in advance, drop old ones, and delete old dead letters and keys.

    Args:
        keep_finished: seconds to keep succeeded jobs.
        keep_cancelled: seconds to keep cancelled jobs.
        keep_dead: seconds to keep dead letters.
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
