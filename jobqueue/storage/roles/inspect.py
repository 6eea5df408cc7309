"""The store's verbs to read jobs, queues, nodes, schedules, and the history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import msgspec

from jobqueue.job_filters import DeadFilter, JobFilter
from jobqueue.metrics import Totals
from jobqueue.storage.roles.run import Activity

HISTORY = {10: 3_600, 60: 21_600, 300: 86_400}
"""The lengths of the history's slots in seconds, each with the seconds for which the database keeps slots of this length."""

HISTORY_SETTLE = 2
"""A slot of the history becomes visible this many seconds after its end. By then every node has written its counts."""

WALK_ROWS = 10_000
"""Maximum number of jobs that are read for one page of a list, with any filter."""


class Slot(NamedTuple):
    """The work of all nodes in one slot of the history.

    Attributes:
        at: the start of the slot.
        counts: the counts of the slot.
        depth: the number of jobs by state; None if no node counted them.
    """

    at: datetime
    counts: Totals
    depth: Mapping[str, int] | None


class Glance(NamedTuple):
    """The columns of a job that watchers need."""

    state: str
    attempt: int
    claims: int
    saved: Any


class Page(NamedTuple):
    """One page of a list of jobs, and the id after which the next page starts; None if this is the last page."""

    jobs: list[dict[str, Any]]
    next: str | None


class Causes(NamedTuple):
    """Dead jobs grouped by queue, kind and cause, and whether there are more groups."""

    causes: list[dict[str, Any]]
    more: bool


class Depth(msgspec.Struct, frozen=True):
    """The number of a queue's jobs in one state, and the age of the oldest one.

    Attributes:
        queue: the queue.
        state: pending, blocked, scheduled, inflight, or dead.
        jobs: the number of jobs.
        oldest: the age of the oldest job in seconds. It counts from when the job became available (pending, blocked), was due
            (scheduled; 0 if it is not due yet), was claimed (inflight), or died (dead).
    """

    queue: str
    state: str
    jobs: int
    oldest: float


class InspectStore(Protocol):
    """Read jobs, queues, nodes, schedules, and the history."""

    async def jobs(self, wanted: JobFilter, *, limit: int, after: str | None = None, rows: int = WALK_ROWS) -> Page:
        """Return a page of jobs, the latest first, without columns that may be large. A short page is not always the last one.

        Args:
            wanted: the filter.
            limit: the maximum number of jobs on the page.
            after: the `Page.next` of the previous page.
            rows: the maximum number of jobs to read. The page ends there, even if it is short.
        """

    async def job(self, job_id: str) -> dict[str, Any] | None:
        """Return all columns of a job in any state, or None if it does not exist."""

    async def look(self, job_ids: Sequence[str]) -> dict[str, Glance]:
        """Return the states and notes of jobs, by id, without jobs that do not exist."""

    async def dead(self, wanted: DeadFilter, *, limit: int, after: tuple[datetime, str] | None = None) -> list[dict[str, Any]]:
        """Return dead jobs, the latest first, without their payloads.

        Args:
            wanted: the filter.
            limit: the maximum number of jobs.
            after: the time of death and the id of the last job on the previous page.
        """

    async def dead_causes(self, wanted: DeadFilter, *, limit: int) -> Causes:
        """Return dead jobs grouped by queue, kind and cause, the largest group first.

        Args:
            wanted: the filter.
            limit: the maximum number of groups.
        """

    async def queues(self) -> list[dict[str, Any]]:
        """Return all queues that were configured, or that a node has worked."""

    async def nodes(self) -> list[dict[str, Any]]:
        """Return the registered nodes, including lost nodes until they are recovered, with their claimed jobs and throughput."""

    async def schedules(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return all schedules, or only the one with the given name."""

    async def depths(self) -> list[Depth]:
        """Count waiting, running and dead jobs, by queue and state."""

    async def throughput(self) -> Activity:
        """Return the work of all nodes together over the last minute, by queue."""

    async def history(self, step: int, *, seconds: float) -> list[Slot]:
        """Return the finished history slots of all nodes, the oldest first, without slots in which no node ran.

        Args:
            step: the slots' length in seconds; one of `HISTORY`.
            seconds: the time to look back, in seconds.
        """

    async def now(self) -> datetime:
        """Return the time of the database's clock."""
