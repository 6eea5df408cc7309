"""The node's lease: one row, renewed on the database's clock, that covers every job the node holds.

State: *held* (claims allowed) -> *in doubt* (the last renewal is too long ago: no claims, running jobs go on) -> *held* again, or
*lost* (the row is gone: somebody else has the jobs). A lost lease is told to the engine, which drops what it runs, and the node
joins again under a new id, so that nothing of the old one can be mistaken for the new one's.
"""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import structlog
import trio
import uuid_utils

from jobqueue import __version__
from jobqueue.concurrency.routine import Routine
from jobqueue.concurrency.trouble import LONGEST_PAUSE, Trouble
from jobqueue.engine.activity import RecentActivity
from jobqueue.keeper.node_state import NodeState
from jobqueue.metrics import Metrics
from jobqueue.storage.store import Node, RunId, Store

RENEWALS_PER_LEASE = 6
"""How often a lease is renewed within its time, at least: five renewals may fail before it is lost."""

LONGEST_INTERVAL = 2.0
"""Seconds between two renewals, at the most: they are also what tells that the database is away."""

STEADY_AFTER = 10.0
"""Seconds of undisturbed renewals before a node judges others: after an outage all leases have run out, and each needs a moment."""

log = structlog.get_logger()


class Lease:
    """This process's membership in the cluster.

    Args:
        queues: concurrency by queue, for others to see.
        seconds: the visibility timeout.
        on_lost: called, synchronously, when the lease is lost and before a new one is taken.
        on_held: called when the lease is valid again: nothing was claimed meanwhile.
        on_unwanted: called with runs of this node that somebody wants cancelled; again with each renewal until they have ended.
        node_state: where the node's id is written for its keeper; None without one.

    Attributes:
        node: this process as the others see it; replaced when the lease is lost.
        activity: what the others are told of it with each renewal.
    """

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        *,
        queues: Mapping[str, int],
        seconds: float,
        on_lost: Callable[[], None],
        on_held: Callable[[], None],
        on_unwanted: Callable[[Iterable[RunId]], None],
        node_state: NodeState | None = None,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._queues = queues
        self._seconds = seconds
        self._on_lost = on_lost
        self._on_held = on_held
        self._on_unwanted = on_unwanted
        self._node_state = node_state
        self._undisturbed_since = math.inf
        self._valid_until = -1.0
        self._interval = min(LONGEST_INTERVAL, seconds / RENEWALS_PER_LEASE)
        self.trouble = Trouble("heartbeat", vital=True, longest_pause=min(LONGEST_PAUSE, self._interval))
        self._routine = Routine(self._renew, self.trouble)
        self.run = self._routine.run
        self.activity = RecentActivity()
        self.node = self._new_node()

    @property
    def valid(self) -> bool:
        """Whether the lease is known to hold: without it nothing may be claimed."""
        return trio.current_time() < self._valid_until

    @property
    def steady(self) -> bool:
        """Whether the lease has been renewed without a failure for long enough to judge nodes that have not done so."""
        return self.valid and trio.current_time() - self._undisturbed_since >= min(STEADY_AFTER, self._seconds)

    @property
    def remaining(self) -> float:
        """Seconds until the lease runs out unless it is renewed; negative afterwards."""
        return self._valid_until - trio.current_time()

    async def join(self) -> None:
        """Enter the node and take its first lease.

        Raises:
            DatabaseUnavailable: PostgreSQL is away.
        """
        # Counted from before the call: the local estimate ends before the database's lease does, whatever the call took.
        before = trio.current_time()
        await self._store.join(self.node, lease=self._seconds)
        self._hold(before)
        self._metrics.name_node(self.node.id, self.node.host, self.node.version)
        log.info("node joined", node=self.node.id)

    def renew_soon(self) -> None:
        """Say that there is something that only a renewal brings: a job that is to be cancelled."""
        self._routine.due_in(0)

    async def leave(self) -> None:
        """Hand back what is still held and remove the node."""
        self._valid_until = -1.0
        released = await self._store.leave(self.node.id)
        log.info("node left", node=self.node.id, jobs_handed_back=released)

    async def _renew(self) -> float:
        """Renew the lease, or take a new one when it is lost; return the seconds until the next renewal."""
        before = trio.current_time()
        try:
            unwanted = await self._store.heartbeat(self.node.id, lease=self._seconds, activity=self.activity.rates())
        except Exception:
            self._undisturbed_since = math.inf
            raise
        if unwanted is None:
            log.error("lease lost: other nodes have this node's jobs", node=self.node.id)
            self._valid_until = -1.0
            self.node = self._new_node()
            self._on_lost()
            await self.join()
        else:
            self._hold(before)
            if unwanted:
                self._on_unwanted(unwanted)
        return self._interval

    def _hold(self, renewed_at: float) -> None:
        was_valid = self.valid
        self._valid_until = renewed_at + self._seconds
        if was_valid:
            self._undisturbed_since = min(self._undisturbed_since, trio.current_time())
        else:  # it had run out, as all have when the machine was paused: the others' need a moment, too
            self._undisturbed_since = trio.current_time()
            self._on_held()

    def _new_node(self) -> Node:
        node_id = str(uuid_utils.uuid4())
        if self._node_state is not None:
            self._node_state.name_node(node_id)
        return Node(
            id=node_id,
            host=platform.node(),
            pid=os.getpid(),
            process=process_identity(os.getpid()),
            version=__version__,
            queues=self._queues,
        )


async def expire_dead_neighbours(store: Store) -> None:
    """End the leases of processes of this machine that are gone, so that a restart need not wait for the visibility timeout.

    Only a process that certainly ended counts: one of the same boot and the same process namespace whose pid is free, or was
    given to a process that started at another time.
    """
    here = _namespace()
    if here is None:
        return
    dead = [process for process in await store.processes() if _certainly_ended(process, here)]
    if dead:
        log.info("dead nodes of this machine found", nodes=await store.expire(dead))


def _certainly_ended(process: str, here: str) -> bool:
    """Whether the process that has this identity ran in this namespace, and is gone. Other text in its place says nothing."""
    pid = process.removeprefix(f"{here}:").partition(":")[0]
    known = process.startswith(f"{here}:") and re.fullmatch("[0-9]{1,10}", pid) is not None
    return known and process != process_identity(int(pid))


def process_identity(pid: int) -> str:
    """Name a process so that no other of this machine, before or after, has the same name: boot, namespace, pid, start time.

    Outside of Linux, where there is no such name, it says so, and is of no use to `expire_dead_neighbours`.
    """
    return f"{_namespace() or 'unknown'}:{pid}:{_start_time(pid)}"


def _namespace() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return None


def _start_time(pid: int) -> str:
    """When the process started, in clock ticks after boot: field 22 of proc(5)'s stat; "gone" when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "gone"
    state, *fields = stat.rpartition(") ")[2].split()
    return "gone" if state in "ZX" else fields[18]
