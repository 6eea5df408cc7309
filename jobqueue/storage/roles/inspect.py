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


Time = str
"""A time of the database's clock as ISO 8601 text. It is a text because PostgreSQL has times that `datetime` cannot represent."""

Number = int | float
"""A number that is encoded as PostgreSQL wrote it: 3, not 3.0."""


class HistorySlot(NamedTuple):
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


class _Job(msgspec.Struct, kw_only=True):
    """The fields that all kinds of lists show. A user's SQL may have written any JSON into the fields of type `Any`.

    Attributes:
        node_id: the node that runs it, or ran it last.
        options: see `jobqueue.job.Options`.
    """

    id: str
    queue: str
    kind: str
    priority: int
    attempt: int
    max_retries: int | None
    created_at: Time
    node_id: str | None
    options: Any


class JobSummary(_Job, kw_only=True):
    """A job on a list, without the fields that may be large; see `StoredJob`."""

    state: str
    run_at: Time | None
    claimed_at: Time | None
    ended_at: Time | None
    reason: str | None
    progress: Any


class StoredJob(_Job, kw_only=True):
    """A job in any state.

    Attributes:
        claims: the number of its last claim.
        ended_at: when it succeeded, died, or was cancelled.
        saved: its progress and checkpoint, by name.
    """

    state: str
    payload: Any
    timeout: Number | None
    claims: int
    available_since: Time
    run_at: Time | None
    claimed_at: Time | None
    ended_at: Time | None
    result: Any
    reason: str | None
    errors: Any
    saved: Any
    cancel_requested_at: Time | None


class JobPage(msgspec.Struct):
    """One page of a list of jobs, and the id after which the next page starts; None if this is the last page."""

    jobs: list[JobSummary]
    next: str | None


class DeadJob(_Job, kw_only=True):
    """A dead job on a list.

    Attributes:
        error: its last error.
        cause: its error or reason, without the parts that differ between similar failures.
    """

    died_at: Time
    reason: str
    error: Any
    cause: str


class CauseGroup(msgspec.Struct, kw_only=True):
    """The dead jobs of one queue, kind, and cause; `example` is the id of the job that died last."""

    queue: str
    kind: str
    cause: str
    jobs: int
    first_died_at: Time
    last_died_at: Time
    example: str


class CauseGroups(msgspec.Struct):
    """Groups of dead jobs, and whether there are more groups."""

    causes: list[CauseGroup]
    more: bool


class QueueEntry(msgspec.Struct, kw_only=True):
    """A queue with its settings; see `QueueSettings`. A queue that nobody has configured has the defaults."""

    name: str
    paused: bool = False
    aging_interval: Number = 1.0
    max_running: int | None = None
    rate: Number | None = None
    burst: int | None = None
    key_max_running: int | None = None
    key_rate: Number | None = None
    key_burst: int | None = None
    created_at: Time | None = None


class RunningCount(msgspec.Struct):
    """The number of jobs of one queue and kind that a node runs, and the seconds since it claimed the oldest one."""

    queue: str
    kind: str
    jobs: int
    oldest: Number


class Rates(msgspec.Struct):
    """Succeeded jobs and failed attempts per second, over the last minute."""

    completed: Number
    failed: Number


class NodeEntry(msgspec.Struct, kw_only=True):
    """A registered node; see `Node`."""

    id: str
    host: str
    pid: int
    version: str
    queues: Any
    started_at: Time
    heartbeat_at: Time
    lease_until: Time
    running: list[RunningCount]
    throughput: Rates


class StoredSchedule(msgspec.Struct, kw_only=True):
    """A schedule; see `CronSchedule`.

    Attributes:
        source: the module that declares it; None if it was created over HTTP or in SQL.
        next_at: the first tick that is not processed yet; None until a node has computed it, or if `error` is set.
        last_at: the last tick that got a job.
        error: why there is no next tick.
    """

    name: str
    source: str | None
    cron: str
    timezone: str
    missed: str
    kind: str
    payload: Any
    queue: str
    priority: int
    max_retries: int | None
    timeout: Number | None
    paused: bool
    next_at: Time | None
    last_at: Time | None
    error: str | None
    created_at: Time
    updated_at: Time


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

    async def jobs(self, wanted: JobFilter, *, limit: int, after: str | None = None, rows: int = WALK_ROWS) -> JobPage:
        """Return a page of jobs, the latest first, without columns that may be large. A short page is not always the last one.

        Args:
            wanted: the filter.
            limit: the maximum number of jobs on the page.
            after: the `JobPage.next` of the previous page.
            rows: the maximum number of jobs to read. The page ends there, even if it is short.
        """

    async def job(self, job_id: str) -> StoredJob | None:
        """Return a job in any state, or None if it does not exist."""

    async def look(self, job_ids: Sequence[str]) -> dict[str, Glance]:
        """Return the states and notes of jobs, by id, without jobs that do not exist."""

    async def dead(self, wanted: DeadFilter, *, limit: int, after: tuple[datetime, str] | None = None) -> list[DeadJob]:
        """Return dead jobs, the latest first, without their payloads.

        Args:
            wanted: the filter.
            limit: the maximum number of jobs.
            after: the time of death and the id of the last job on the previous page.
        """

    async def dead_causes(self, wanted: DeadFilter, *, limit: int) -> CauseGroups:
        """Return dead jobs grouped by queue, kind and cause, the largest group first.

        Args:
            wanted: the filter.
            limit: the maximum number of groups.
        """

    async def queues(self) -> list[QueueEntry]:
        """Return all queues that were configured, or that a node has worked."""

    async def nodes(self) -> list[NodeEntry]:
        """Return the registered nodes, including lost nodes until they are recovered, with their claimed jobs and throughput."""

    async def schedules(self, name: str | None = None) -> list[StoredSchedule]:
        """Return all schedules, or only the one with the given name."""

    async def depths(self) -> list[Depth]:
        """Count waiting, running and dead jobs, by queue and state."""

    async def throughput(self) -> Activity:
        """Return the work of all nodes together over the last minute, by queue."""

    async def history(self, step: int, *, seconds: float) -> list[HistorySlot]:
        """Return the finished history slots of all nodes, the oldest first, without slots in which no node ran.

        Args:
            step: the slots' length in seconds; one of `HISTORY`.
            seconds: the time to look back, in seconds.
        """

    async def now(self) -> datetime:
        """Return the time of the database's clock."""
