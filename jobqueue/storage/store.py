"""All database operations of a node. Most operations call one SQL function of schema.sql. Each call is one transaction.

Batches are passed and returned as one JSON document. Times are seconds on the database's clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import msgspec
import trio
from msgspec import UNSET

from jobqueue import documents
from jobqueue.errors import ConnectionLost, DatabaseUnavailable
from jobqueue.job import Change, Note, Outcome
from jobqueue.job_filters import DeadFilter, JobFilter
from jobqueue.metrics import Totals
from jobqueue.queue_settings import QueueSettings
from jobqueue.storage import claims, schema
from jobqueue.storage.claims import Claimed, Expired
from jobqueue.storage.database import POOLED, Connection, Lane
from jobqueue.timetable import CronSchedule, Missed

SUBMIT_TIMEOUT = 15.0
"""Maximum seconds for the transaction of one batch of submissions, because callers wait for the response."""

IN_LOOP_CHARACTERS = 64 << 10
"""Maximum length, in characters, of a batch that is sent from the Trio loop, not from a thread. Sending it blocks the loop for less
than a millisecond."""

IN_LOOP_JOBS = 64
"""Maximum number of jobs that a claim may take in the Trio loop. Larger claims run in a thread."""

INSPECT_TIMEOUT = 10.0
"""Maximum seconds for a query that an operator or a scrape has requested."""

OUTAGE_AFTER = 1.0
"""If all calls on a lane have failed for this many seconds, the database counts as unavailable. A shorter failure may be one broken
connection."""

SLOW_AFTER = 5.0
"""Seconds after which an unfinished submission, claim, or write of outcomes makes the node not ready."""

HEARTBEAT_TIMEOUT = 4.0
"""Maximum seconds for one heartbeat. It is short, so that several attempts fit into one lease."""

SETTLE_TIMEOUT = 5.0
"""Seconds to wait for the session of a lost connection to end. After that, the caller must try again."""

HELD_PATIENCE = 0.05
"""The same for the dispatcher. This time is short, because the dispatcher can make other claims before it tries again."""

RECOVER_BATCH = 1_000
PROMOTE_BATCH = 1_000
ADMIT_BATCH = 1_000
SCHEDULE_BATCH = 500
DEAD_BATCH = 1_000
CANCEL_BATCH = 1_000
PRUNE_BATCH = 1_000
"""Maximum number of jobs (or schedules) in one transaction, for each kind of work."""

HISTORY = {10: 3_600, 60: 21_600, 300: 86_400}
"""The lengths of the history's slots in seconds, each with the seconds for which the database keeps slots of this length."""

HISTORY_SETTLE = 2
"""A slot of the history becomes visible this many seconds after its end. By then every node has written its counts."""

WALK_ROWS = 10_000
"""Maximum number of jobs that are read for one page of a list, with any filter."""

T = TypeVar("T")


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


class Promotion(msgspec.Struct, frozen=True):
    """The result of `Store.promote`.

    Attributes:
        jobs: the number of jobs that became pending.
        best: their best ranks.
        next_due: seconds until the next job is due or expires; None if there is none.
        expired: the jobs that died because they expired.
        next_check: seconds until `Store.admit` has work; None if no check is pending.
    """

    jobs: int
    best: Ranks
    next_due: float | None
    expired: Sequence[Expired] = ()
    next_check: float | None = None


class Admission(msgspec.Struct, frozen=True):
    """The result of `Store.admit`.

    Attributes:
        checks: the number of checks made.
        best: the best ranks of the jobs that became pending.
        next_check: seconds until the next check is due; None if there is none.
    """

    checks: int
    best: Ranks
    next_check: float | None


class Want(NamedTuple):
    """How many jobs of a queue to claim.

    Attributes:
        jobs: the maximum number.
        floor: no pending job has a rank below this one, so the search starts there; None to search all ranks.
    """

    jobs: int
    floor: float | None = None


class Claim(NamedTuple):
    """The arguments of a claim; see `Store.claim`."""

    node_id: str
    wants: Mapping[str, Want]
    defaults: bytes


class Submitted(NamedTuple):
    """The result of `Store.submit`.

    Attributes:
        best: the best rank of each queue that received pending jobs.
        claimed: the claimed jobs; None if nothing was claimed.
        ids: the ids of all jobs; None if no job has a key. If a job with the same key existed, the list has that job's id instead.
    """

    best: Ranks
    claimed: Claimed | None = None
    ids: list[str] | None = None


class DueSchedule(msgspec.Struct, array_like=True, frozen=True):
    """A schedule with due ticks.

    Attributes:
        name, cron, timezone, missed: see `CronSchedule`.
        next_at: the first due tick, in seconds since 1970; None if it has not been computed yet.
    """

    name: str
    cron: str
    timezone: str
    missed: Missed
    next_at: float | None


class DueSchedules(NamedTuple):
    """The result of `Store.due_schedules`.

    Attributes:
        at: the database's time, in seconds since 1970.
        due: the due schedules.
        next_in: seconds until the next tick of the other schedules; None if there is none.
    """

    at: float
    due: list[DueSchedule]
    next_in: float | None


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """Moves a schedule to its next tick. Times are seconds since 1970.

    Attributes:
        name: the schedule.
        cron, timezone, missed, expected: the schedule's values when `Store.due_schedules` read them; `expected` is its `next_at`.
            If a value has changed since then, the schedule is not moved.
        ticks: the ticks for which to submit a job.
        next_at: the first tick after these; None if there is none.
        error: why there is no next tick; None if there is one.
    """

    name: str
    cron: str
    timezone: str
    missed: Missed
    expected: float | None
    ticks: list[float]
    next_at: float | None
    error: str | None = None


class Moved(NamedTuple):
    """The result of `Store.move_schedules`.

    Attributes:
        names: the schedules that the call moved.
        best: the best rank of each queue that received jobs.
        next_in: seconds until the next tick; None if there is none. It ignores schedules that the call should have moved, but did
            not.
        submitted: the number of submitted jobs, by queue and kind.
    """

    names: set[str]
    best: Ranks
    next_in: float | None
    submitted: Mapping[tuple[str, str], int]


class Maintained(NamedTuple):
    """The result of `Store.maintain`: the number of dropped partitions, and the messages of errors."""

    dropped: int
    failed: Sequence[str] = ()


class Recorded(NamedTuple):
    """The result of `Store.record`: seconds until its next call, and whether that call must sample the depths."""

    next_in: float
    sample: bool


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


class Cancelled(NamedTuple):
    """The result of `Store.cancel_jobs`.

    Attributes:
        jobs: the number of jobs that this call cancelled.
        next: the id after which the next call continues; None if all jobs were visited.
    """

    jobs: int
    next: str | None


Activity = Mapping[str, tuple[float, float]]
"""Succeeded jobs and failed attempts, both per second, by queue."""


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


class Store:
    """The database operations, with one connection for each kind of work, so that no kind of work waits for another.

    All operations raise `DatabaseUnavailable` if PostgreSQL cannot be reached, and `ConnectionLost` if the connection broke and the
    transaction may or may not be committed.

    Args:
        url: a libpq URL or connection string.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._submit = Lane(url, "submit", reply_timeout=SUBMIT_TIMEOUT)
        self._claim = Lane(url, "claim")
        self._finish = Lane(url, "finish")
        self._heartbeat = Lane(url, "heartbeat", reply_timeout=HEARTBEAT_TIMEOUT)
        self._housekeeping = Lane(url, "housekeeping")
        self._inspect = Lane(url, "inspect", reply_timeout=INSPECT_TIMEOUT)

    @property
    def submit_trouble(self) -> str | None:
        """The error of the last submission, if submissions have failed for over `OUTAGE_AFTER` seconds; else None."""
        return self._submit.trouble if trio.current_time() - self._submit.trouble_since > OUTAGE_AFTER else None

    def slow_calls(self) -> dict[str, float]:
        """Return the essential calls that have been running for over `SLOW_AFTER` seconds, each with its seconds so far.

        Such a call shows that a backend does not reply, even before the call times out.
        """
        lanes = {"submission": self._submit, "claim": self._claim, "write of outcomes": self._finish}
        return {name: lane.waiting for name, lane in lanes.items() if lane.waiting > SLOW_AFTER}

    async def aclose(self) -> None:
        """Close all connections."""
        async with trio.open_nursery() as nursery:
            for lane in (self._submit, self._claim, self._finish, self._heartbeat, self._housekeeping, self._inspect):
                nursery.start_soon(lane.aclose)

    async def migrate(self) -> None:
        """Apply schema.sql if needed; see `schema.migrate`."""
        await self._housekeeping.run(schema.migrate)

    # -- submit

    async def submit(
        self, jobs: Sequence[bytes], *, wake: bool, along: Claim | None = None, key_ttl: float | None = None
    ) -> Submitted:
        """Commit new jobs, all or none.

        Args:
            jobs: encoded `NewJob` documents.
            wake: whether to notify the other nodes.
            along: a claim to make in the same transaction, after the jobs are stored. The submission succeeds even if the claim
                fails.
            key_ttl: seconds for which an idempotency key is kept. None if no job has a key; then `Submitted.ids` is None.

        Raises:
            RefusedKey: the key of a job belongs to another job, or another transaction is using it.
            RefusedData: PostgreSQL rejected a value in a job.
        """
        batch = documents.join(jobs)
        claim = (None, None, None) if along is None else (along.node_id, _text(along.wants), along.defaults.decode())
        in_loop = len(batch) <= IN_LOOP_CHARACTERS
        ids: list[str] | None = None
        if key_ttl is None:
            sql = "SELECT best, claimed FROM jobqueue.submit_batch(%s::jsonb, false, %s, %s, %s::jsonb, %s::jsonb)"
            best, claimed = await self._submit.call(sql, batch, wake, *claim, in_loop=in_loop)
        else:
            sql = "SELECT best, claimed, ids::text[] FROM jobqueue.submit_batch(%s::jsonb, false, %s, %s, %s::jsonb, %s::jsonb, %s)"
            best, claimed, ids = await self._submit.call(sql, batch, wake, *claim, key_ttl, in_loop=in_loop)
        return Submitted(best, None if claimed is None else claims.read(claimed), ids)

    async def submit_again(self, jobs: Sequence[bytes], *, backend: tuple[int, str], key_ttl: float | None = None) -> Submitted:
        """Commit jobs whose first commit is in doubt. Jobs that already exist, in any state, are not changed.

        Args:
            jobs: the same documents as in the first call.
            backend: the `backend` of the `ConnectionLost` that the first call raised.
            key_ttl: the same as in the first call. If a job's key shows that it was committed, it is not committed again, even if
                the job no longer exists.
        """
        try:
            await self._submit.run(lambda connection: _settle(connection, backend))
        except ConnectionLost as error:
            # This connection has written nothing yet. So its loss must not look like a second commit in doubt.
            raise DatabaseUnavailable(str(error)) from error
        if key_ttl is None:
            sql = "SELECT best FROM jobqueue.submit_batch(%s::jsonb, true, true)"
            return Submitted(_ranks(await self._submit.run(_scalar(sql, documents.join(jobs)))))
        sql = "SELECT best, ids::text[] AS ids FROM jobqueue.submit_batch(%s::jsonb, true, true, key_ttl => %s)"
        [row] = await self._submit.run(_rows(sql, documents.join(jobs), key_ttl))
        return Submitted(row["best"], ids=row["ids"])

    # -- nodes and leases

    async def join(self, node: Node, *, lease: float) -> None:
        """Register a node with a lease of `lease` seconds."""
        await self._heartbeat.run(
            _scalar(
                "SELECT jobqueue.join_node(%s, %s, %s, %s, %s, %s::jsonb, %s)",
                *(node.id, node.host, node.pid, node.process, node.version, _text(node.queues), lease),
            )
        )

    async def heartbeat(self, node_id: str, *, lease: float, activity: Activity | None = None) -> list[RunId] | None:
        """Renew a lease.

        Args:
            node_id: the node.
            lease: the new lease's length, in seconds.
            activity: the node's work over the last minute.

        Returns:
            The node's runs that must be cancelled; None if the lease is lost, so that the node no longer owns its jobs.
        """
        sql = "SELECT jobqueue.heartbeat(%s, %s, %s::jsonb)"
        unwanted = await self._heartbeat.run(_scalar(sql, node_id, lease, _text(activity) if activity else None))
        return None if unwanted is None else msgspec.convert(unwanted, list[RunId])

    async def leave(self, node_id: str) -> int:
        """Release the jobs that the node still holds, without counting their attempts, and remove it. Return their number."""
        return _int(await self._heartbeat.run(_scalar("SELECT jobqueue.leave_node(%s)", node_id)))

    async def expire(self, processes: Iterable[str]) -> int:
        """Remove the nodes of processes that have ended, so that `recover` takes their jobs at once. Return their number."""
        sql = "WITH gone AS (DELETE FROM jobqueue.nodes WHERE process = ANY (%s) RETURNING id) SELECT count(*) FROM gone"
        return _int(await self._housekeeping.run(_scalar(sql, list(processes))))

    async def processes(self) -> list[str]:
        """Return the `process` of every registered node."""
        rows = await self._housekeeping.run(_rows("SELECT process FROM jobqueue.nodes"))
        return [str(row["process"]) for row in rows]

    # -- claim and finish

    async def claim(self, node_id: str, wants: Mapping[str, Want], defaults: bytes) -> Claimed:
        """Claim jobs for this node, best rank first.

        Args:
            node_id: the node. Without a valid lease, it claims nothing.
            wants: how many jobs to claim, by queue.
            defaults: a JSON object ``{kind: max_retries}``, for jobs submitted without `max_retries`.
        """

        few = sum([want.jobs for want in wants.values()]) <= IN_LOOP_JOBS
        sql = "SELECT jobqueue.claim(%s, %s::jsonb, %s::jsonb)"
        [text] = await self._claim.call(sql, node_id, _text(wants), defaults.decode(), in_loop=few)
        return claims.read(text)

    async def held(self, node_id: str, *, lost: Iterable[tuple[int, str]] = ()) -> set[RunId]:
        """Return the runs that this node holds, according to the database.

        Args:
            node_id: the node.
            lost: the backends of claims whose connections broke. This call first ends their transactions.

        Raises:
            DatabaseUnavailable: one of these transactions has not ended yet.
        """

        def work(connection: Connection) -> set[RunId]:
            for backend in lost:
                _settle(connection, backend, patience=HELD_PATIENCE)
            rows = _rows("SELECT id, claims FROM jobqueue.inflight_jobs WHERE node_id = %s", node_id)(connection)
            return {(str(row["id"]), int(row["claims"])) for row in rows}

        return await self._claim.run(work)

    async def finish(self, node_id: str, outcomes: Sequence[Outcome], *, keep: bool = True) -> set[int]:
        """Write the outcomes of runs. Return the positions (from 0) of stale ones, which were dropped.

        Args:
            node_id: the node that ran them.
            outcomes: the outcomes; `documents` must have checked their results and texts.
            keep: whether succeeded jobs are kept until their retention period ends.
        """

        given = msgspec.json.encode(outcomes).decode()
        sql = "SELECT jobqueue.finish(%s, %s::jsonb, %s)"
        [stale] = await self._finish.call(sql, node_id, given, keep, in_loop=len(given) <= IN_LOOP_CHARACTERS)
        return {place - 1 for place in stale}

    async def note(self, node_id: str, notes: Sequence[Note]) -> set[str]:
        """Store the notes of this node's unfinished runs. Return the ids of the jobs whose notes were stored.

        This skips runs that have ended, and jobs that another transaction is changing.
        """
        [row] = await self._housekeeping.run(
            _rows("SELECT jobqueue.note(%s, %s::jsonb) AS written", node_id, msgspec.json.encode(notes).decode())
        )
        return {str(job_id) for job_id in row["written"]}

    # -- housekeeping

    async def promote(self) -> Promotion:
        """Make due jobs pending, and expired jobs dead, at most `PROMOTE_BATCH` in each state."""
        [row] = await self._housekeeping.run(_rows("SELECT * FROM jobqueue.promote(%s)", PROMOTE_BATCH))
        expired = msgspec.convert(row["expired"], list[Expired])
        return Promotion(row["promoted"], row["best"], row["next_due"], expired, row["next_check"])

    async def admit(self) -> Admission:
        """Run at most `ADMIT_BATCH` due checks of concurrency keys. Blocked jobs of keys below their limits become pending."""
        [row] = await self._housekeeping.run(_rows("SELECT * FROM jobqueue.admit(%s)", ADMIT_BATCH))
        return Admission(row["checks"], row["best"], row["next_due"])

    async def recover(self, *, judge: str | None = None) -> list[Recovered]:
        """Recover the jobs of lost nodes, at most `RECOVER_BATCH`.

        Args:
            judge: the id of a node with a valid lease. If given, this call first removes nodes with expired leases. If None, it
                removes no node.
        """
        rows = await self._housekeeping.run(_rows("SELECT * FROM jobqueue.recover(%s, %s::uuid)", RECOVER_BATCH, judge))
        return [msgspec.convert({**row, "id": str(row["id"]), "node_id": str(row["node_id"])}, Recovered) for row in rows]

    async def due_schedules(self) -> DueSchedules:
        """Find schedules that have due ticks, at most `SCHEDULE_BATCH`."""
        [row] = await self._housekeeping.run(_rows("SELECT * FROM jobqueue.due_schedules(%s)", SCHEDULE_BATCH))
        return DueSchedules(row["at"], msgspec.convert(row["due"], list[DueSchedule]), row["next_in"])

    async def move_schedules(self, moves: Sequence[Move]) -> Moved:
        """Move schedules to their next ticks and submit the jobs of the due ticks.

        This skips schedules that another node is moving, or that have changed.

        Raises:
            RefusedData: PostgreSQL rejected one of the jobs.
        """
        [row] = await self._housekeeping.run(_rows("SELECT * FROM jobqueue.move_schedules(%s::jsonb)", _text(moves)))
        submitted = {(queue, kind): jobs for queue, kind, jobs in row["submitted"]}
        return Moved(set(row["moved"]), row["best"], row["next_in"], submitted)

    async def reconcile_schedules(self, source: str, schedules: Sequence[CronSchedule]) -> dict[str, str | None]:
        """Replace the schedules of a source, unless another source owns one of the names.

        Returns:
            The names that other sources own, with their sources. If the result is not empty, nothing was changed.
        """
        sql = "SELECT * FROM jobqueue.reconcile_schedules(%s, %s::jsonb)"
        rows = await self._housekeeping.run(_rows(sql, source, _text(schedules)))
        return {row["name"]: row["owner"] for row in rows}

    async def maintain(self, *, keep_finished: float, keep_cancelled: float) -> Maintained:
        """Create the partitions of the next days. Drop partitions whose day ended more than the given number of seconds ago."""
        sql = "SELECT dropped, failed FROM jobqueue.maintain(%s, %s)"
        [row] = await self._housekeeping.run(_rows(sql, keep_finished, keep_cancelled))
        return Maintained(row["dropped"], row["failed"])

    async def prune(self, *, keep_finished: float, keep_cancelled: float, keep_dead: float) -> int:
        """Delete jobs after their retention period, at most `PRUNE_BATCH` from each table. Return their number.

        If all jobs of a partition are past their retention period, `maintain` drops the whole partition instead.

        Args:
            keep_finished: retention of succeeded jobs, in seconds.
            keep_cancelled: retention of cancelled jobs, in seconds.
            keep_dead: retention of dead jobs, in seconds.

        Raises:
            DatabaseUnavailable, RefusedData: a table's jobs could not be deleted, and the other tables have nothing to delete.
        """
        sql = "SELECT jobqueue.prune(%s, %s, %s, %s)"
        return _int(await self._housekeeping.run(_scalar(sql, keep_finished, keep_cancelled, keep_dead, PRUNE_BATCH)))

    async def prune_keys(self) -> int:
        """Delete keys that are no longer needed. Return the number of keys that were checked, at most `PRUNE_BATCH`."""
        return _int(await self._housekeeping.run(_scalar("SELECT jobqueue.prune_keys(%s)", PRUNE_BATCH)))

    async def record(self, counts: Totals, *, sample: bool = False) -> Recorded:
        """Add a node's counts to the history slots that have just ended, and delete old slots.

        Args:
            counts: the counts since the last call; the histograms may omit empty buckets at the end.
            sample: whether to count the depths too. For each slot, `Recorded.sample` is true for only one node.
        """
        sql = "SELECT * FROM jobqueue.record(%s, %s, %s, %s, %s::integer[], %s::integer[], %s)"
        *jobs, waits, runs = counts
        [row] = await self._inspect.run(_rows(sql, *jobs, list(waits), list(runs), sample))
        return Recorded(row["next_in"], row["next_sample"])

    async def history(self, step: int, *, seconds: float) -> list[Slot]:
        """Return the finished history slots of all nodes, the oldest first, without slots in which no node ran.

        Args:
            step: the slots' length in seconds; one of `HISTORY`.
            seconds: the time to look back, in seconds.
        """
        sql = """
            SELECT at, submitted, completed, failed, dead, waits, runs, depth FROM jobqueue.history
             WHERE step = %s AND at >= now() - %s::float8 * interval '1 second' AND at <= now() - %s * interval '1 second'
             ORDER BY at
        """
        rows = await self._inspect.run(_rows(sql, step, seconds, step + HISTORY_SETTLE))
        return [Slot(row["at"].astimezone(UTC), Totals(*(row[name] for name in Totals._fields)), row["depth"]) for row in rows]

    async def depths(self) -> list[Depth]:
        """Count waiting, running and dead jobs, by queue and state."""
        sql = """
            SELECT queue, 'pending' AS state, count(*) AS jobs,
                   extract(epoch FROM now() - min(available_since))::float8 AS oldest
              FROM jobqueue.pending_jobs GROUP BY queue
            UNION ALL
            SELECT queue, 'blocked', count(*), extract(epoch FROM now() - min(available_since))::float8
              FROM jobqueue.blocked_jobs GROUP BY queue
            UNION ALL
            SELECT queue, 'scheduled', count(*), extract(epoch FROM now() - min(run_at))::float8
              FROM jobqueue.scheduled_jobs GROUP BY queue
            UNION ALL
            SELECT queue, 'inflight', count(*), extract(epoch FROM now() - min(claimed_at))::float8
              FROM jobqueue.inflight_jobs GROUP BY queue
            UNION ALL
            SELECT queue, 'dead', count(*), extract(epoch FROM now() - min(died_at))::float8 FROM jobqueue.dead_jobs GROUP BY queue
        """
        rows = await self._inspect.run(_rows(sql))
        return [Depth(row["queue"], row["state"], row["jobs"], max(0.0, row["oldest"])) for row in rows]

    async def throughput(self) -> Activity:
        """Return the work of all nodes together over the last minute, by queue."""
        sql = """
            SELECT a.key AS queue, sum((a.value ->> 0)::numeric)::float8 AS completed,
                   sum((a.value ->> 1)::numeric)::float8 AS failed
              FROM jobqueue.nodes AS n CROSS JOIN jsonb_each(n.activity) AS a
             WHERE n.lease_until > now() GROUP BY a.key
        """
        rows = await self._inspect.run(_rows(sql))
        return {row["queue"]: (row["completed"], row["failed"]) for row in rows}

    # -- inspect and change

    async def jobs(self, wanted: JobFilter, *, limit: int, after: str | None = None, rows: int = WALK_ROWS) -> Page:
        """Return a page of jobs, the latest first, without columns that may be large. A short page is not always the last one.

        Args:
            wanted: the filter.
            limit: the maximum number of jobs on the page.
            after: the `Page.next` of the previous page.
            rows: the maximum number of jobs to read. The page ends there, even if it is short.
        """
        sql = "SELECT jobqueue.list_jobs(%s::jsonb, %s, %s::uuid, %s) AS page"
        [row] = await self._inspect.run(_rows(sql, _text(wanted), limit, after, rows))
        return Page(row["page"]["jobs"], row["page"]["next"])

    async def job(self, job_id: str) -> dict[str, Any] | None:
        """Return all columns of a job in any state, or None if it does not exist."""
        sql = """
            SELECT to_jsonb(j) || jsonb_build_object(
                       'payload', jobqueue.shown(j.payload), 'result', jobqueue.shown(j.result), 'errors', jobqueue.shown(j.errors),
                       'options', jobqueue.shown(j.options), 'saved', jobqueue.shown(j.saved)) AS job
              FROM jobqueue.jobs AS j WHERE id = %s
        """
        rows = await self._inspect.run(_rows(sql, job_id))
        return dict(rows[0]["job"]) if rows else None

    async def look(self, job_ids: Sequence[str]) -> dict[str, Glance]:
        """Return the states and notes of jobs, by id, without jobs that do not exist."""
        sql = "SELECT id, state, attempt, claims, jobqueue.shown(saved) AS saved FROM jobqueue.jobs WHERE id = ANY (%s::uuid[])"
        rows = await self._inspect.run(_rows(sql, list(job_ids)))
        return {str(row["id"]): Glance(row["state"], row["attempt"], row["claims"], row["saved"]) for row in rows}

    async def cancel(self, job_id: str, *, keep: bool = True) -> bool:
        """Cancel a job. A waiting job is cancelled at once; a running job, as soon as its node notices the request.

        Args:
            job_id: the job.
            keep: whether a waiting job is kept, as cancelled, until its retention period ends.

        Returns:
            False if the job has ended or does not exist.
        """
        return bool(await self._inspect.run(_scalar("SELECT jobqueue.cancel_now(%s, %s)", job_id, keep)))

    async def cancel_jobs(
        self, wanted: JobFilter, *, keep: bool = True, after: str | None = None, dry_run: bool = False
    ) -> Cancelled:
        """Cancel waiting and running jobs, the latest first, at most `CANCEL_BATCH`.

        Args:
            wanted: the filter.
            keep: whether waiting jobs are kept, as cancelled, until their retention period ends.
            after: the `Cancelled.next` of the previous call. Because of it, jobs submitted between the calls are not cancelled.
            dry_run: count the jobs without cancelling them; the count may exceed `CANCEL_BATCH`.
        """
        sql = "SELECT jobs, rest::text FROM jobqueue.cancel_walk(%s::jsonb, %s, %s::uuid, %s, %s)"
        most = None if dry_run else CANCEL_BATCH
        [row] = await self._inspect.run(_rows(sql, _text(wanted), most, after, keep, dry_run))
        return Cancelled(row["jobs"], row["rest"])

    async def change(self, job_id: str, change: Change) -> bool:
        """Change the priority of a waiting job, or its time to run. Return False if it is not waiting.

        Raises:
            RefusedData: the priority is out of range.
        """
        sql = "SELECT jobqueue.change(%s, %s, coalesce(%s::timestamptz, now() + %s::float8 * interval '1 second'))"
        return bool(await self._inspect.run(_scalar(sql, job_id, change.priority, change.run_at, change.delay)))

    async def retry(self, job_id: str) -> bool:
        """Run a dead job again, with its full number of attempts. Return False if it is not dead.

        Raises:
            KeyInUse: another unfinished job now has the job's unique key, or an open transaction is using that key.
        """
        return bool(await self._inspect.run(_scalar("SELECT jobqueue.retry(%s)", job_id)))

    async def discard(self, job_id: str) -> bool:
        """Delete a dead job permanently. Return False if it is not dead."""
        return bool(await self._inspect.run(_scalar("SELECT jobqueue.discard(%s)", job_id)))

    async def pause(self, queue: str, *, paused: bool) -> None:
        """Pause or resume a queue on all nodes."""
        await self._inspect.run(_scalar("SELECT jobqueue.pause(%s, %s)", queue, paused))

    async def configure(self, queue: str, settings: QueueSettings) -> None:
        """Change the settings of a queue on all nodes."""
        given = msgspec.structs.asdict(settings)  # in the order of the function's parameters
        values = [None if value is UNSET else value for value in given.values()]
        clear = [name for name, value in given.items() if value is None]
        sql = "SELECT jobqueue.configure(%s, %s * interval '1 second', %s, %s, %s, %s, %s, %s, %s)"
        await self._inspect.run(_scalar(sql, queue, *values, clear))

    async def queues(self) -> list[dict[str, Any]]:
        """Return all queues that were configured, or that a node has worked."""
        return await self._list(
            """
            SELECT to_jsonb(q) - 'fair' || jsonb_build_object('aging_interval', extract(epoch FROM aging_interval)::float8) AS row
              FROM jobqueue.queues AS q ORDER BY name
            """
        )

    async def nodes(self) -> list[dict[str, Any]]:
        """Return the registered nodes, including lost nodes until they are recovered, with their claimed jobs and throughput."""
        return await self._list(
            """
            SELECT to_jsonb(n) - '{process,activity}'::text[] || jsonb_build_object('running', coalesce(r.running, '[]'),
                       'throughput', jsonb_build_object('completed', a.completed, 'failed', a.failed)) AS row
              FROM jobqueue.nodes AS n
              LEFT JOIN (
                   SELECT g.node_id, jsonb_agg(to_jsonb(g) - 'node_id' ORDER BY g.queue, g.kind) AS running
                     FROM (SELECT i.node_id, i.queue, i.kind, count(*) AS jobs,
                                  greatest(0, extract(epoch FROM now() - min(i.claimed_at)))::float8 AS oldest
                             FROM jobqueue.inflight_jobs AS i GROUP BY i.node_id, i.queue, i.kind) AS g
                    GROUP BY g.node_id) AS r ON r.node_id = n.id
             CROSS JOIN LATERAL (
                   SELECT coalesce(sum((e.value ->> 0)::numeric), 0)::float8 AS completed,
                          coalesce(sum((e.value ->> 1)::numeric), 0)::float8 AS failed
                     FROM jsonb_each(n.activity) AS e WHERE n.lease_until > now()) AS a
             ORDER BY n.started_at
            """
        )

    async def schedules(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return all schedules, or only the one with the given name."""
        sql = """
            SELECT to_jsonb(s) || jsonb_build_object('payload', jobqueue.shown(s.payload)) AS row
              FROM jobqueue.schedules AS s WHERE coalesce(s.name = %s::text, true) ORDER BY name
        """
        return await self._list(sql, name)

    async def put_schedule(self, schedule: CronSchedule) -> bool:
        """Create a schedule, or change the one with this name. Return whether it is new."""
        fields = msgspec.structs.asdict(schedule) | {"payload": bytes(schedule.payload).decode()}
        sql = f"SELECT jobqueue.schedule({', '.join(f'{field} => %s' for field in fields)})"
        return bool(await self._inspect.run(_scalar(sql, *fields.values())))

    async def unschedule(self, name: str) -> bool:
        """Delete a schedule. Return False if it does not exist."""
        return bool(await self._inspect.run(_scalar("SELECT jobqueue.unschedule(%s)", name)))

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        """Pause or resume a schedule. Return False if it does not exist."""
        return bool(await self._inspect.run(_scalar("SELECT jobqueue.pause_schedule(%s, %s)", name, paused)))

    async def trigger_schedule(self, name: str) -> str | None:
        """Submit a schedule's job now. Return the job's id, or None if the schedule does not exist."""
        job_id = await self._inspect.run(_scalar("SELECT jobqueue.trigger_schedule(%s)", name))
        return None if job_id is None else str(job_id)

    async def dead(self, wanted: DeadFilter, *, limit: int, after: tuple[datetime, str] | None = None) -> list[dict[str, Any]]:
        """Return dead jobs, the latest first, without their payloads.

        Args:
            wanted: the filter.
            limit: the maximum number of jobs.
            after: the time of death and the id of the last job on the previous page.
        """
        sql = "SELECT row FROM jobqueue.list_dead(%s::jsonb, %s, %s::timestamptz, %s::uuid) AS row"
        return await self._list(sql, _text(wanted), limit, *(after or (None, None)))

    async def dead_causes(self, wanted: DeadFilter, *, limit: int) -> Causes:
        """Return dead jobs grouped by queue, kind and cause, the largest group first.

        Args:
            wanted: the filter.
            limit: the maximum number of groups.
        """
        sql = "SELECT jobqueue.dead_causes(%s::jsonb, %s)"
        found = await self._inspect.run(_scalar(sql, _text(wanted), limit))
        assert isinstance(found, dict)  # noqa: S101 - jsonb, an object
        return Causes(found["causes"], found["more"])

    async def retry_dead(self, wanted: DeadFilter, *, dry_run: bool = False) -> int:
        """Redrive the oldest dead jobs, at most `DEAD_BATCH`. Return their number. A dry run only counts, without this limit."""
        sql = "SELECT jobqueue.retry_dead(%s::jsonb, %s, %s)"
        return _int(await self._inspect.run(_scalar(sql, _text(wanted), None if dry_run else DEAD_BATCH, dry_run)))

    async def discard_dead(self, wanted: DeadFilter, *, dry_run: bool = False) -> int:
        """Delete the oldest dead jobs, at most `DEAD_BATCH`. Return their number. A dry run only counts, without this limit."""
        sql = "SELECT jobqueue.discard_dead(%s::jsonb, %s, %s)"
        return _int(await self._inspect.run(_scalar(sql, _text(wanted), None if dry_run else DEAD_BATCH, dry_run)))

    async def now(self) -> datetime:
        """Return the time of the database's clock."""
        moment = await self._inspect.run(_scalar("SELECT clock_timestamp()"))
        assert isinstance(moment, datetime)  # noqa: S101 - timestamptz
        return moment

    async def _list(self, sql: str, *params: Any) -> list[dict[str, Any]]:
        return [dict(row["row"]) for row in await self._inspect.run(_rows(sql, *params))]


def _settle(connection: Connection, backend: tuple[int, str], *, patience: float = SETTLE_TIMEOUT) -> None:
    """Wait until the transaction of a lost connection has ended, by commit or rollback.

    On a direct connection, PostgreSQL may still receive a statement after the connection broke. So this function ends the session.
    This does not interrupt a commit in progress.

    With a pooler, this function does not end the session, because the session may already serve another client. There, only a lost
    COMMIT is in doubt. The transaction holds an advisory lock until it ends, so this function waits for that lock. PostgreSQL rolls
    back a transaction whose COMMIT does not arrive within `database.ABANDONED_AFTER` seconds.

    Args:
        connection: another connection.
        backend: the identity of the lost connection's backend; see `database`.
        patience: seconds to wait for the session's end, on a direct connection.

    Raises:
        DatabaseUnavailable: the session has not ended in this time.
    """
    if backend[1] == POOLED:
        connection.execute(b"SELECT pg_advisory_xact_lock(%s)", backend[:1])
        return
    sql = b"""
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE pid = %s AND backend_start = %s::timestamptz AND application_name LIKE 'jobqueue %%' AND pid <> pg_backend_pid()
    """
    deadline = time.monotonic() + patience
    while connection.execute(sql, backend).fetchone():
        if time.monotonic() > deadline:
            raise DatabaseUnavailable("PostgreSQL has not ended the session of a lost connection yet")
        time.sleep(0.02)


def _text(value: object) -> str:
    return documents.encode(value).decode()


def _scalar(sql: str, *params: Any) -> Callable[[Connection], object]:
    def work(connection: Connection) -> object:
        row = connection.execute(sql.encode(), params, prepare=True).fetchone()
        return row[0] if row else None

    return work


def _rows(sql: str, *params: Any) -> Callable[[Connection], list[dict[str, Any]]]:
    def work(connection: Connection) -> list[dict[str, Any]]:
        cursor = connection.execute(sql.encode(), params, prepare=True)
        names = [column.name for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    return work


def _ranks(value: object) -> Ranks:
    assert isinstance(value, dict)  # noqa: S101 - jsonb, an object
    return value


def _int(value: object) -> int:
    assert isinstance(value, int)  # noqa: S101 - count(*) or integer
    return value
