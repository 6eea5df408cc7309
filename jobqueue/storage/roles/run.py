"""The store's verbs to register nodes, renew their leases, and claim and finish jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from jobqueue.job import Note, Outcome
from jobqueue.storage.claims import Claimed

RECOVER_BATCH = 1_000
"""Maximum number of jobs that one call recovers."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A service process, as it registers in the ``nodes`` table.

    Attributes:
        id: a new UUID for each start: a restarted process is a new node.
        host: its machine's host name.
        pid: its process id.
        process: identifies this process among all processes since this machine's boot; see `engine.leases`.
        version: its version of jobqueue.
        queues: the maximum number of jobs that it runs at once, by queue.
    """

    id: str
    host: str
    pid: int
    process: str
    version: str
    queues: Mapping[str, int]


class Recovered(msgspec.Struct, frozen=True):
    """A job recovered from a lost node.

    Attributes:
        id: the job's id.
        queue: its queue.
        kind: its kind.
        attempt: the number of the attempt that was lost.
        node_id: the lost node.
        outcome: the job's new state: pending, scheduled, dead, or cancelled.
        reason: the reason if it is dead, else None.
    """

    id: str
    queue: str
    kind: str
    attempt: int
    node_id: str
    outcome: str
    reason: str | None = None


RunId = tuple[str, int]
"""Identifies a run: the job's id and the number of its claim."""


Ranks = Mapping[str, float]
"""The best rank among jobs that became pending, by queue. A claim must start its search there."""


Activity = Mapping[str, tuple[float, float]]
"""Succeeded jobs and failed attempts, both per second, by queue."""


class Want(NamedTuple):
    """How many jobs of a queue to claim.

    Attributes:
        jobs: the maximum number.
        floor: no pending job has a rank below this one, so the search starts there; None to search all ranks.
    """

    jobs: int
    floor: float | None = None


class Claim(NamedTuple):
    """The arguments of a claim; see `RunStore.claim`."""

    node_id: str
    wants: Mapping[str, Want]
    defaults: bytes


class RunStore(Protocol):
    """Register nodes, renew their leases, and claim and finish jobs."""

    async def join(self, node: Node, *, lease: float) -> None:
        """Register a node with a lease of `lease` seconds."""

    async def heartbeat(self, node_id: str, *, lease: float, activity: Activity | None = None) -> list[RunId] | None:
        """Renew a lease.

        Args:
            node_id: the node.
            lease: the new lease's length, in seconds.
            activity: the node's work over the last minute.

        Returns:
            The node's runs that must be cancelled; None if the lease is lost, so that the node no longer owns its jobs.
        """

    async def leave(self, node_id: str) -> int:
        """Release the jobs that the node still holds, without counting their attempts, and remove it. Return their number."""

    async def expire(self, processes: Iterable[str]) -> int:
        """Remove the nodes of processes that have ended, so that `recover` takes their jobs at once. Return their number."""

    async def processes(self) -> list[str]:
        """Return the `process` of every registered node."""

    async def recover(self, *, judge: str | None = None) -> list[Recovered]:
        """Recover the jobs of lost nodes, at most `RECOVER_BATCH`.

        Args:
            judge: the id of a node with a valid lease. If given, this call first removes nodes with expired leases. If None, it
                removes no node.
        """

    async def claim(self, node_id: str, wants: Mapping[str, Want], defaults: bytes) -> Claimed:
        """Claim jobs for this node, best rank first.

        Args:
            node_id: the node. Without a valid lease, it claims nothing.
            wants: how many jobs to claim, by queue.
            defaults: a JSON object ``{kind: max_retries}``, for jobs submitted without `max_retries`.
        """

    async def held(self, node_id: str, *, lost: Iterable[tuple[int, str]] = ()) -> set[RunId]:
        """Return the runs that this node holds, according to the database.

        Args:
            node_id: the node.
            lost: the backends of claims whose connections broke. This call first ends their transactions.

        Raises:
            DatabaseUnavailable: one of these transactions has not ended yet.
        """

    async def finish(self, node_id: str, outcomes: Sequence[Outcome], *, keep: bool = True) -> set[int]:
        """Write the outcomes of runs. Return the positions (from 0) of stale ones, which were dropped.

        Args:
            node_id: the node that ran them.
            outcomes: the outcomes; `documents` must have checked their results and texts.
            keep: whether succeeded jobs are kept until their retention period ends.
        """

    async def note(self, node_id: str, notes: Sequence[Note]) -> set[str]:
        """Store the notes of this node's unfinished runs. Return the ids of the jobs whose notes were stored.

        This skips runs that have ended, and jobs that another transaction is changing.
        """
