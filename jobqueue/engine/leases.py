"""Hold the node's lease. The lease is one row that covers all jobs of the node. PostgreSQL's clock decides when it expires.

States:

- *held*: the node may claim.
- *in doubt*: the last renewal is too old. The node does not claim, and running jobs continue. A
  successful renewal leads back to *held*.
- *lost*: the row is gone, and other nodes have the jobs. The node drops its runs and joins again
  under a new id. Late writes of the old runs carry the old id, so the database rejects them as stale.
"""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import structlog
import trio
import uuid_utils

from jobqueue._version import __version__
from jobqueue.concurrency.routine import Routine
from jobqueue.concurrency.trouble import LONGEST_PAUSE, Trouble
from jobqueue.engine.recent_rates import RecentRates
from jobqueue.engine.signals import Signals
from jobqueue.keeper.node_state import NodeState
from jobqueue.metrics import Metrics
from jobqueue.storage.roles.run import Node, RunStore

RENEWALS_PER_LEASE = 6
"""Minimum number of renewals per lease duration. Five renewals in a row can fail before the lease is lost."""

LONGEST_INTERVAL = 2.0
"""Maximum interval between two renewals, in seconds. Renewals also detect that PostgreSQL is unavailable."""

STEADY_AFTER = 10.0
"""Seconds of successful renewals before a node may end the expired leases of other nodes.

After an outage all leases have expired, and each node needs time to renew its own.
"""

log = structlog.get_logger()


class Lease:
    """The lease of this process.

    Args:
        queues: concurrency by queue, shown to other nodes.
        seconds: the visibility timeout.
        node_state: where to write the node's id for its keeper; None without one.

    Attributes:
        node: this process as other nodes see it; replaced when the lease is lost.
        activity: the throughput that each renewal stores.
    """

    def __init__(
        self,
        store: RunStore,
        metrics: Metrics,
        signals: Signals,
        *,
        queues: Mapping[str, int],
        seconds: float,
        node_state: NodeState | None = None,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._queues = queues
        self._seconds = seconds
        self._signals = signals
        self._node_state = node_state
        self._undisturbed_since = math.inf
        self._valid_until = -1.0
        self._interval = min(LONGEST_INTERVAL, seconds / RENEWALS_PER_LEASE)
        self.trouble = Trouble("heartbeat", vital=True, longest_pause=min(LONGEST_PAUSE, self._interval))
        self._routine = Routine(self._renew, self.trouble)
        self.run = self._routine.run
        signals.cancel_requested.subscribe(self.renew_soon)
        self.activity = RecentRates()
        self.node = self._new_node()

    @property
    def valid(self) -> bool:
        """Whether the lease is valid. Without a valid lease the node claims no jobs."""
        return trio.current_time() < self._valid_until

    @property
    def steady(self) -> bool:
        """Whether renewals have succeeded long enough for this node to end expired leases of other nodes."""
        return self.valid and trio.current_time() - self._undisturbed_since >= min(STEADY_AFTER, self._seconds)

    @property
    def remaining(self) -> float:
        """Seconds until the lease expires without a renewal; negative afterwards."""
        return self._valid_until - trio.current_time()

    async def join(self) -> None:
        """Insert the node's row with its first lease.

        Raises:
            DatabaseUnavailable: PostgreSQL is unavailable.
        """
        # Take the time before the call, so that the local estimate ends before the lease in the database.
        before = trio.current_time()
        await self._store.join(self.node, lease=self._seconds)
        self._hold(before)
        self._metrics.name_node(self.node.id, self.node.host, self.node.version)
        log.info("node joined", node=self.node.id)

    def renew_soon(self) -> None:
        """Renew the lease now, to learn which jobs are to be cancelled."""
        self._routine.due_in(0)

    async def leave(self) -> None:
        """Release the jobs that the node still holds, and delete its row."""
        self._valid_until = -1.0
        released = await self._store.leave(self.node.id)
        log.info("node left", node=self.node.id, jobs_handed_back=released)

    async def _renew(self) -> float:
        """Renew the lease, or join again if it is lost; return the seconds until the next renewal."""
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
            self._signals.lease_lost.publish()
            await self.join()
        else:
            self._hold(before)
            if unwanted:
                self._signals.runs_unwanted.publish(unwanted)
        return self._interval

    def _hold(self, renewed_at: float) -> None:
        was_valid = self.valid
        self._valid_until = renewed_at + self._seconds
        if was_valid:
            self._undisturbed_since = min(self._undisturbed_since, trio.current_time())
        else:
            # The lease had expired. If the machine was paused, all leases have expired, and the other nodes may need time too.
            self._undisturbed_since = trio.current_time()
            self._signals.lease_held.publish()

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


async def expire_dead_neighbours(store: RunStore) -> None:
    """End the leases of dead processes on this machine, so that a restart need not wait for the visibility timeout.

    The check considers only processes of the same boot and the same PID namespace. Such a process is
    dead if its PID is now free or belongs to a process with another start time.
    """
    here = _namespace()
    if here is None:
        return
    dead = [process for process in await store.processes() if _certainly_ended(process, here)]
    if dead:
        log.info("dead nodes found on this machine", nodes=await store.expire(dead))


def _certainly_ended(process: str, here: str) -> bool:
    """Return whether this identity belongs to a process in this namespace that has ended; False for any other text."""
    pid = process.removeprefix(f"{here}:").partition(":")[0]
    known = process.startswith(f"{here}:") and re.fullmatch("[0-9]{1,10}", pid) is not None
    return known and process != process_identity(int(pid))


def process_identity(pid: int) -> str:
    """Return a unique name of a process on this machine, across reboots: boot, namespace, PID, start time.

    Outside of Linux, the name starts with "unknown", and `expire_dead_neighbours` ignores it.
    """
    return f"{_namespace() or 'unknown'}:{pid}:{_start_time(pid)}"


def _namespace() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return None


def _start_time(pid: int) -> str:
    """Return the process's start time in clock ticks after boot (field 22 of proc(5)'s stat), or "gone"."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "gone"
    state, *fields = stat.rpartition(") ")[2].split()
    return "gone" if state in "ZX" else fields[18]
