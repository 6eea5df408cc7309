"""Every verb that jobqueue has for its database. Each is one SQL function of schema.sql: one call, one transaction.

Batches go in and come out as one JSON document. Times are seconds on the database's clock.
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
from jobqueue.job import Change, DeadFilter, JobFilter, Note, Outcome, QueueSettings
from jobqueue.metrics import Totals
from jobqueue.storage import claims, schema
from jobqueue.storage.claims import Claimed, Expired
from jobqueue.storage.database import POOLED, Connection, Lane
from jobqueue.timetable import CronSchedule, Missed

SUBMIT_TIMEOUT = 15.0
"""Seconds for the transaction of one batch of submissions: somebody waits for the answer."""

IN_LOOP_CHARACTERS = 64 << 10
"""Up to this size a batch is sent by the loop: not a millisecond, in which the loop would serve nobody else."""

IN_LOOP_JOBS = 64
"""Up to this many jobs a claim is waited for by the loop."""

INSPECT_TIMEOUT = 10.0
"""Seconds for a question of an operator, or of a scrape."""

OUTAGE_AFTER = 1.0
"""Seconds without a success from which on a lane's trouble is an outage, and not a connection that broke."""

SLOW_AFTER = 5.0
"""Seconds from which on a submission, a claim or a write of outcomes that is under way makes the node not ready."""

HEARTBEAT_TIMEOUT = 4.0
"""Seconds for one renewal of a lease, so that several fit into it."""

SETTLE_TIMEOUT = 5.0
"""Seconds for the session of a lost connection to end, for whoever has nothing else to do; then the question is asked again."""

HELD_PATIENCE = 0.05
"""The same for the dispatcher, which has other claims to make meanwhile, and asks again."""

RECOVER_BATCH = 1_000
PROMOTE_BATCH = 1_000
ADMIT_BATCH = 1_000
SCHEDULE_BATCH = 500
DEAD_BATCH = 1_000
CANCEL_BATCH = 1_000
PRUNE_BATCH = 1_000
"""Jobs in one transaction of each kind."""

HISTORY = {10: 3_600, 60: 21_600, 300: 86_400}
"""The seconds of each slot of the history, and for how many seconds such slots are kept."""

HISTORY_SETTLE = 2
"""Seconds after its end from which on a slot is shown: by then every node has written what it did in it."""

WALK_ROWS = 10_000
"""Jobs that are looked at for one page of a list, whatever the filter."""

T = TypeVar("T")


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One running process, as it enters itself in the ``nodes`` table.

    Attributes:
        id: a fresh UUID for each boot: a restarted process is a new node.
        process: what tells this process from any other of this machine's boot, see `engine.leases`.
        queues: how many jobs of each queue it runs at once.
    """

    id: str
    host: str
    pid: int
    process: str
    version: str
    queues: Mapping[str, int]


class Recovered(msgspec.Struct, frozen=True):
    """A job taken back from a lost node.

    Attributes:
        outcome: the state that it is in now: pending, scheduled, dead, or cancelled.
        reason: why it is dead.
    """

    id: str
    queue: str
    kind: str
    attempt: int
    node_id: str
    outcome: str
    reason: str | None = None


RunId = tuple[str, int]
"""A run, by its job's id and the number of the claim."""

Ranks = Mapping[str, float]
"""The best rank among jobs that became pending, by queue: where a claim has to look for them."""


class Promotion(msgspec.Struct, frozen=True):
    """What `Store.promote` did.

    Attributes:
        jobs: how many were moved to pending.
        best: their best ranks.
        next_due: seconds until the next is due or expires; None where nothing will.
        expired: the jobs that died.
        next_check: seconds until there is something to do for `Store.admit`; None for nothing.
    """

    jobs: int
    best: Ranks
    next_due: float | None
    expired: Sequence[Expired] = ()
    next_check: float | None = None


class Admission(msgspec.Struct, frozen=True):
    """What `Store.admit` did: checks made, best ranks of jobs admitted, seconds until the next check is due (None: none)."""

    checks: int
    best: Ranks
    next_check: float | None


class Want(NamedTuple):
    """How many jobs of a queue to claim, and the rank below which there is no need to look (None: look everywhere)."""

    jobs: int
    floor: float | None = None


class Claim(NamedTuple):
    """What a node asks for: see `Store.claim`."""

    node_id: str
    wants: Mapping[str, Want]
    defaults: bytes


class Submitted(NamedTuple):
    """What `Store.submit` did.

    Attributes:
        best: the best rank of each queue that got jobs to run now.
        claimed: what it claimed; None: it did not.
        ids: of all the jobs, where some have keys: a job that was there already has that one's id; None: no job has a key.
    """

    best: Ranks
    claimed: Claimed | None = None
    ids: list[str] | None = None


class DueSchedule(msgspec.Struct, array_like=True, frozen=True):
    """A schedule with due ticks; `next_at` is the first of them (None: nobody has computed it yet)."""

    name: str
    cron: str
    timezone: str
    missed: Missed
    next_at: float | None


class DueSchedules(NamedTuple):
    """What `Store.due_schedules` found: at what time, what is due, and seconds until the next of the others is (None: never)."""

    at: float
    due: list[DueSchedule]
    next_in: float | None


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """How far a schedule is to be moved.

    Attributes:
        name, cron, timezone, missed, expected: what was looked at: a schedule that is another by now, or further, is left alone.
        ticks: the times that get a job.
        next_at: the first tick after these; None where there is none.
        error: why there is none.
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
    """What `Store.move_schedules` did.

    Attributes:
        names: of what it moved.
        best: the best rank of each queue that got jobs.
        next_in: seconds until the next tick of all but those that it left alone; None: never.
        submitted: how many jobs, by queue and kind.
    """

    names: set[str]
    best: Ranks
    next_in: float | None
    submitted: Mapping[tuple[str, str], int]


class Maintained(NamedTuple):
    """How many partitions `Store.maintain` dropped, and what failed, as sentences."""

    dropped: int
    failed: Sequence[str] = ()


class Recorded(NamedTuple):
    """When to call `Store.record` again, in seconds, and whether it is to sample the depths then."""

    next_in: float
    sample: bool


class Slot(NamedTuple):
    """What all nodes did in one slot of the history.

    Attributes:
        at: when it began.
        counts: what was counted in it.
        depth: how many jobs there were in each state; None where nobody has counted them.
    """

    at: datetime
    counts: Totals
    depth: Mapping[str, int] | None


class Glance(NamedTuple):
    """What is watched of a job."""

    state: str
    attempt: int
    claims: int
    saved: Any


class Page(NamedTuple):
    """Some of the jobs that were asked for, and the id from which the others go on; None: these are the last."""

    jobs: list[dict[str, Any]]
    next: str | None


class Causes(NamedTuple):
    """Dead jobs in groups of one queue, kind and cause, and whether there are more groups."""

    causes: list[dict[str, Any]]
    more: bool


class Cancelled(NamedTuple):
    """How many jobs one walk of `Store.cancel_jobs` has cancelled, and the id from which the next goes on; None: that was all."""

    jobs: int
    next: str | None


Activity = Mapping[str, tuple[float, float]]
"""By queue: jobs that succeeded and attempts that failed, a second."""


class Depth(msgspec.Struct, frozen=True):
    """How many jobs of a queue are in a state that waits or runs, and the age of the oldest in seconds.

    The age counts from when the job became available, was claimed, or died; of scheduled jobs from when one was due.
    """

    queue: str
    state: str
    jobs: int
    oldest: float


class Store:
    """The database's verbs, on one connection for each kind of work, so that none waits behind another.

    All of them raise `DatabaseUnavailable` when PostgreSQL is away and `ConnectionLost` when nobody knows whether it did it.

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
        """Why no submission could be written for a while; None when one could, or when a connection has only just broken."""
        return self._submit.trouble if trio.current_time() - self._submit.trouble_since > OUTAGE_AFTER else None

    def slow_calls(self) -> dict[str, float]:
        """The calls without which no job moves, where one has been under way for over `SLOW_AFTER` seconds; and for how long.

        A backend that does not answer looks alive until its reply times out.
        """
        lanes = {"submission": self._submit, "claim": self._claim, "write of outcomes": self._finish}
        return {name: lane.waiting for name, lane in lanes.items() if lane.waiting > SLOW_AFTER}

    async def aclose(self) -> None:
        """Close all connections."""
        async with trio.open_nursery() as nursery:
            for lane in (self._submit, self._claim, self._finish, self._heartbeat, self._housekeeping, self._inspect):
                nursery.start_soon(lane.aclose)

    async def migrate(self) -> None:
        """Apply schema.sql where it is needed; see `schema.migrate`."""
        await self._housekeeping.run(schema.migrate)

    # -- submit

    async def submit(
        self, jobs: Sequence[bytes], *, wake: bool, along: Claim | None = None, key_ttl: float | None = None
    ) -> Submitted:
        """Commit new jobs, all or none.

        Args:
            jobs: encoded `NewJob` documents.
            wake: tell the other nodes.
            along: what to claim in the same transaction, after the jobs are there; it does not fail for want of that.
            key_ttl: for how many seconds an idempotency key is known; None where no job has a key, and the ids are not asked for.

        Raises:
            RefusedKey: a key of one of them stands for another job, or is in somebody's transaction.
            RefusedData: PostgreSQL refused a value in one of them.
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
        """Commit jobs whose first commit may or may not have happened: what exists in any state is left alone.

        Args:
            jobs: the same documents.
            backend: of the `ConnectionLost` that the first try raised.
            key_ttl: as the first try had it. A job whose key says that it was committed is left alone also when it is gone.
        """
        try:
            await self._submit.run(lambda connection: _settle(connection, backend))
        except ConnectionLost as error:
            # Nothing was written on this connection: the doubt is still about the first one.
            raise DatabaseUnavailable(str(error)) from error
        if key_ttl is None:
            sql = "SELECT best FROM jobqueue.submit_batch(%s::jsonb, true, true)"
            return Submitted(_ranks(await self._submit.run(_scalar(sql, documents.join(jobs)))))
        sql = "SELECT best, ids::text[] AS ids FROM jobqueue.submit_batch(%s::jsonb, true, true, key_ttl => %s)"
        [row] = await self._submit.run(_rows(sql, documents.join(jobs), key_ttl))
        return Submitted(row["best"], ids=row["ids"])

    # -- nodes and leases

    async def join(self, node: Node, *, lease: float) -> None:
        """Enter a node with a lease of so many seconds."""
        await self._heartbeat.run(
            _scalar(
                "SELECT jobqueue.join_node(%s, %s, %s, %s, %s, %s::jsonb, %s)",
                *(node.id, node.host, node.pid, node.process, node.version, _text(node.queues), lease),
            )
        )

    async def heartbeat(self, node_id: str, *, lease: float, activity: Activity | None = None) -> list[RunId] | None:
        """Renew a lease; return the node's runs that somebody wants cancelled. None: it is lost, its jobs are somebody else's.

        Args:
            node_id: the node.
            lease: seconds.
            activity: what it did over the last minute.
        """
        sql = "SELECT jobqueue.heartbeat(%s, %s, %s::jsonb)"
        unwanted = await self._heartbeat.run(_scalar(sql, node_id, lease, _text(activity) if activity else None))
        return None if unwanted is None else msgspec.convert(unwanted, list[RunId])

    async def leave(self, node_id: str) -> int:
        """Hand back what the node still holds, attempts refunded, and remove it; return how many jobs that were."""
        return _int(await self._heartbeat.run(_scalar("SELECT jobqueue.leave_node(%s)", node_id)))

    async def expire(self, processes: Iterable[str]) -> int:
        """End the leases of processes that are known to be dead; `recover` takes their jobs at once. Return how many."""
        sql = "WITH gone AS (DELETE FROM jobqueue.nodes WHERE process = ANY (%s) RETURNING id) SELECT count(*) FROM gone"
        return _int(await self._housekeeping.run(_scalar(sql, list(processes))))

    async def processes(self) -> list[str]:
        """The `process` of every node in the table."""
        rows = await self._housekeeping.run(_rows("SELECT process FROM jobqueue.nodes"))
        return [str(row["process"]) for row in rows]

    # -- the way of a job

    async def claim(self, node_id: str, wants: Mapping[str, Want], defaults: bytes) -> Claimed:
        """Claim jobs for this node, best rank first.

        Args:
            node_id: a node with a valid lease; without one nothing is claimed.
            wants: by queue.
            defaults: a JSON object of ``{kind: max_retries}`` for jobs that were submitted without.
        """

        few = sum([want.jobs for want in wants.values()]) <= IN_LOOP_JOBS
        sql = "SELECT jobqueue.claim(%s, %s::jsonb, %s::jsonb)"
        [text] = await self._claim.call(sql, node_id, _text(wants), defaults.decode(), in_loop=few)
        return claims.read(text)

    async def held(self, node_id: str, *, lost: Iterable[tuple[int, str]] = ()) -> set[RunId]:
        """The runs that the database says this node holds.

        Args:
            lost: the backends of claims whose answers were lost. Their transactions are ended first.

        Raises:
            DatabaseUnavailable: one of these transactions is not over yet, though it was told to end.
        """

        def work(connection: Connection) -> set[RunId]:
            for backend in lost:
                _settle(connection, backend, patience=HELD_PATIENCE)
            rows = _rows("SELECT id, claims FROM jobqueue.inflight_jobs WHERE node_id = %s", node_id)(connection)
            return {(str(row["id"]), int(row["claims"])) for row in rows}

        return await self._claim.run(work)

    async def finish(self, node_id: str, outcomes: Sequence[Outcome], *, keep: bool = True) -> set[int]:
        """Move each run to where its outcome says; return the positions (from 0) of the stale ones, which were dropped.

        Args:
            node_id: the node that ran them.
            outcomes: whose results and texts have passed the gate (`documents`).
            keep: whether jobs that succeeded are kept, until retention drops them.
        """

        given = msgspec.json.encode(outcomes).decode()
        sql = "SELECT jobqueue.finish(%s, %s::jsonb, %s)"
        [stale] = await self._finish.call(sql, node_id, given, keep, in_loop=len(given) <= IN_LOOP_CHARACTERS)
        return {place - 1 for place in stale}

    async def note(self, node_id: str, notes: Sequence[Note]) -> set[str]:
        """Keep what this node's runs have noted so far; return the ids of the jobs where that was done.

        A run that is over is left alone, and so is one of which something else is being written.
        """
        [row] = await self._housekeeping.run(
            _rows("SELECT jobqueue.note(%s, %s::jsonb) AS written", node_id, msgspec.json.encode(notes).decode())
        )
        return {str(job_id) for job_id in row["written"]}

    # -- housekeeping

    async def promote(self) -> Promotion:
        """Move due jobs to pending, and those whose time is over to the dead letters, at most `PROMOTE_BATCH` of each state."""
        [row] = await self._housekeeping.run(_rows("SELECT * FROM jobqueue.promote(%s)", PROMOTE_BATCH))
        expired = msgspec.convert(row["expired"], list[Expired])
        return Promotion(row["promoted"], row["best"], row["next_due"], expired, row["next_check"])

    async def admit(self) -> Admission:
        """Let the blocked jobs of keys that have room become pending: those of at most `ADMIT_BATCH` checks that are due."""
        [row] = await self._housekeeping.run(_rows("SELECT * FROM jobqueue.admit(%s)", ADMIT_BATCH))
        return Admission(row["checks"], row["best"], row["next_due"])

    async def recover(self, *, judge: str | None = None) -> list[Recovered]:
        """Take back the jobs of lost nodes, at most `RECOVER_BATCH`.

        Args:
            judge: the id of a node that holds its own lease, to take it of nodes that have let theirs run out; None to spare them.
        """
        rows = await self._housekeeping.run(_rows("SELECT * FROM jobqueue.recover(%s, %s::uuid)", RECOVER_BATCH, judge))
        return [msgspec.convert({**row, "id": str(row["id"]), "node_id": str(row["node_id"])}, Recovered) for row in rows]

    async def due_schedules(self) -> DueSchedules:
        """Find schedules that have due ticks, at most `SCHEDULE_BATCH`."""
        [row] = await self._housekeeping.run(_rows("SELECT * FROM jobqueue.due_schedules(%s)", SCHEDULE_BATCH))
        return DueSchedules(row["at"], msgspec.convert(row["due"], list[DueSchedule]), row["next_in"])

    async def move_schedules(self, moves: Sequence[Move]) -> Moved:
        """Move schedules on and submit the jobs of their ticks; those that another node moves, or somebody changes, are left alone.

        Raises:
            RefusedData: PostgreSQL refused one of the jobs.
        """
        [row] = await self._housekeeping.run(_rows("SELECT * FROM jobqueue.move_schedules(%s::jsonb)", _text(moves)))
        submitted = {(queue, kind): jobs for queue, kind, jobs in row["submitted"]}
        return Moved(set(row["moved"]), row["best"], row["next_in"], submitted)

    async def reconcile_schedules(self, source: str, schedules: Sequence[CronSchedule]) -> dict[str, str | None]:
        """Make the schedules of a source these, unless a name is taken; return the names that are, and by which source."""
        sql = "SELECT * FROM jobqueue.reconcile_schedules(%s, %s::jsonb)"
        rows = await self._housekeeping.run(_rows(sql, source, _text(schedules)))
        return {row["name"]: row["owner"] for row in rows}

    async def maintain(self, *, keep_finished: float, keep_cancelled: float) -> Maintained:
        """Make the coming partitions and drop those whose day ended so many seconds ago."""
        sql = "SELECT dropped, failed FROM jobqueue.maintain(%s, %s)"
        [row] = await self._housekeeping.run(_rows(sql, keep_finished, keep_cancelled))
        return Maintained(row["dropped"], row["failed"])

    async def prune(self, *, keep_finished: float, keep_cancelled: float, keep_dead: float) -> int:
        """Delete old jobs whose partition is not dropped, at most `PRUNE_BATCH` of each table; return how many.

        Raises:
            DatabaseUnavailable, RefusedData: PostgreSQL refused it for a table, and there is nothing to delete in the others.
        """
        sql = "SELECT jobqueue.prune(%s, %s, %s, %s)"
        return _int(await self._housekeeping.run(_scalar(sql, keep_finished, keep_cancelled, keep_dead, PRUNE_BATCH)))

    async def prune_keys(self) -> int:
        """Delete keys that nobody needs any more; return how many were looked at, at most `PRUNE_BATCH`."""
        return _int(await self._housekeeping.run(_scalar("SELECT jobqueue.prune_keys(%s)", PRUNE_BATCH)))

    async def record(self, counts: Totals, *, sample: bool = False) -> Recorded:
        """Add what a node has counted to the history's slots that are just over; old slots are let go along with that.

        Args:
            counts: what was counted since the last call; the histograms may end with the last bucket that has something.
            sample: whether to count the depths too, which one call of all nodes' is asked to do for each slot.
        """
        sql = "SELECT * FROM jobqueue.record(%s, %s, %s, %s, %s::integer[], %s::integer[], %s)"
        *jobs, waits, runs = counts
        [row] = await self._inspect.run(_rows(sql, *jobs, list(waits), list(runs), sample))
        return Recorded(row["next_in"], row["next_sample"])

    async def history(self, step: int, *, seconds: float) -> list[Slot]:
        """What all nodes did of late: the slots of so many seconds (`HISTORY`) that are over, the oldest first.

        A slot in which no node ran is left out.

        Args:
            step: the slots' length in seconds.
            seconds: how far to look back.
        """
        sql = """
            SELECT at, submitted, completed, failed, dead, waits, runs, depth FROM jobqueue.history
             WHERE step = %s AND at >= now() - %s::float8 * interval '1 second' AND at <= now() - %s * interval '1 second'
             ORDER BY at
        """
        rows = await self._inspect.run(_rows(sql, step, seconds, step + HISTORY_SETTLE))
        return [Slot(row["at"].astimezone(UTC), Totals(*(row[name] for name in Totals._fields)), row["depth"]) for row in rows]

    async def depths(self) -> list[Depth]:
        """Count the jobs that wait or run, and the dead ones, by queue."""
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
        """What all nodes together did over the last minute, by queue."""
        sql = """
            SELECT a.key AS queue, sum((a.value ->> 0)::numeric)::float8 AS completed,
                   sum((a.value ->> 1)::numeric)::float8 AS failed
              FROM jobqueue.nodes AS n CROSS JOIN jsonb_each(n.activity) AS a
             WHERE n.lease_until > now() GROUP BY a.key
        """
        rows = await self._inspect.run(_rows(sql))
        return {row["queue"]: (row["completed"], row["failed"]) for row in rows}

    # -- looking and steering

    async def jobs(self, wanted: JobFilter, *, limit: int, after: str | None = None, rows: int = WALK_ROWS) -> Page:
        """The jobs that are wanted, the latest first, without what may be large. A page may be short and not be the last.

        Args:
            wanted: which.
            limit: the most.
            after: the `Page.next` of the page before.
            rows: how many are looked at; where that is not enough, the page ends there.
        """
        sql = "SELECT jobqueue.list_jobs(%s::jsonb, %s, %s::uuid, %s) AS page"
        [row] = await self._inspect.run(_rows(sql, _text(wanted), limit, after, rows))
        return Page(row["page"]["jobs"], row["page"]["next"])

    async def job(self, job_id: str) -> dict[str, Any] | None:
        """One job with everything that is known of it, whatever state it is in; None when there is none."""
        sql = """
            SELECT to_jsonb(j) || jsonb_build_object(
                       'payload', jobqueue.shown(j.payload), 'result', jobqueue.shown(j.result), 'errors', jobqueue.shown(j.errors),
                       'options', jobqueue.shown(j.options), 'saved', jobqueue.shown(j.saved)) AS job
              FROM jobqueue.jobs AS j WHERE id = %s
        """
        rows = await self._inspect.run(_rows(sql, job_id))
        return dict(rows[0]["job"]) if rows else None

    async def look(self, job_ids: Sequence[str]) -> dict[str, Glance]:
        """See where jobs are, and what they have noted; those that are nowhere are left out."""
        sql = "SELECT id, state, attempt, claims, jobqueue.shown(saved) AS saved FROM jobqueue.jobs WHERE id = ANY (%s::uuid[])"
        rows = await self._inspect.run(_rows(sql, list(job_ids)))
        return {str(row["id"]): Glance(row["state"], row["attempt"], row["claims"], row["saved"]) for row in rows}

    async def cancel(self, job_id: str, *, keep: bool = True) -> bool:
        """Cancel a job: one that waits now, one that runs as soon as its node hears of it; False when it is neither.

        Args:
            job_id: the job.
            keep: whether one that waits is kept, until retention drops it.
        """
        return bool(await self._inspect.run(_scalar("SELECT jobqueue.cancel_now(%s, %s)", job_id, keep)))

    async def cancel_jobs(
        self, wanted: JobFilter, *, keep: bool = True, after: str | None = None, dry_run: bool = False
    ) -> Cancelled:
        """Cancel jobs that wait or run, the latest first, at most `CANCEL_BATCH`.

        Args:
            wanted: which.
            keep: whether those that wait are kept, until retention drops them.
            after: the `Cancelled.next` of the walk before: what comes meanwhile is not met.
            dry_run: count them, and leave them alone; then there may be more of them.
        """
        sql = "SELECT jobs, rest::text FROM jobqueue.cancel_walk(%s::jsonb, %s, %s::uuid, %s, %s)"
        most = None if dry_run else CANCEL_BATCH
        [row] = await self._inspect.run(_rows(sql, _text(wanted), most, after, keep, dry_run))
        return Cancelled(row["jobs"], row["rest"])

    async def change(self, job_id: str, change: Change) -> bool:
        """Change the priority of a job that waits, or when it may run; False when it does not wait.

        Raises:
            RefusedData: the priority is none.
        """
        sql = "SELECT jobqueue.change(%s, %s, coalesce(%s::timestamptz, now() + %s::float8 * interval '1 second'))"
        return bool(await self._inspect.run(_scalar(sql, job_id, change.priority, change.run_at, change.delay)))

    async def retry(self, job_id: str) -> bool:
        """Run a dead job again with all its attempts; False when it is not dead.

        Raises:
            KeyInUse: an unfinished job has its unique key by now, or a transaction that is not over.
        """
        return bool(await self._inspect.run(_scalar("SELECT jobqueue.retry(%s)", job_id)))

    async def discard(self, job_id: str) -> bool:
        """Delete a dead job for good; False when it is not dead."""
        return bool(await self._inspect.run(_scalar("SELECT jobqueue.discard(%s)", job_id)))

    async def pause(self, queue: str, *, paused: bool) -> None:
        """Pause or resume a queue on all nodes."""
        await self._inspect.run(_scalar("SELECT jobqueue.pause(%s, %s)", queue, paused))

    async def configure(self, queue: str, settings: QueueSettings) -> None:
        """Set what holds for a queue on all nodes."""
        given = msgspec.structs.asdict(settings)  # in the order of the function's parameters
        values = [None if value is UNSET else value for value in given.values()]
        clear = [name for name, value in given.items() if value is None]
        sql = "SELECT jobqueue.configure(%s, %s * interval '1 second', %s, %s, %s, %s, %s, %s, %s)"
        await self._inspect.run(_scalar(sql, queue, *values, clear))

    async def queues(self) -> list[dict[str, Any]]:
        """The queues that are configured or worked."""
        return await self._list(
            """
            SELECT to_jsonb(q) - 'fair' || jsonb_build_object('aging_interval', extract(epoch FROM aging_interval)::float8) AS row
              FROM jobqueue.queues AS q ORDER BY name
            """
        )

    async def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are running, or were and have not been buried yet, with what they have claimed and how much they do."""
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
        """All schedules, or the one of that name."""
        sql = """
            SELECT to_jsonb(s) || jsonb_build_object('payload', jobqueue.shown(s.payload)) AS row
              FROM jobqueue.schedules AS s WHERE coalesce(s.name = %s::text, true) ORDER BY name
        """
        return await self._list(sql, name)

    async def put_schedule(self, schedule: CronSchedule) -> bool:
        """Make a schedule, or change the one of that name; tell whether it is new."""
        fields = msgspec.structs.asdict(schedule) | {"payload": bytes(schedule.payload).decode()}
        sql = f"SELECT jobqueue.schedule({', '.join(f'{field} => %s' for field in fields)})"
        return bool(await self._inspect.run(_scalar(sql, *fields.values())))

    async def unschedule(self, name: str) -> bool:
        """Delete a schedule; False when there is none."""
        return bool(await self._inspect.run(_scalar("SELECT jobqueue.unschedule(%s)", name)))

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        """Pause or resume a schedule; False when there is none."""
        return bool(await self._inspect.run(_scalar("SELECT jobqueue.pause_schedule(%s, %s)", name, paused)))

    async def trigger_schedule(self, name: str) -> str | None:
        """Submit a schedule's job now; return the job's id, None when there is no such schedule."""
        job_id = await self._inspect.run(_scalar("SELECT jobqueue.trigger_schedule(%s)", name))
        return None if job_id is None else str(job_id)

    async def dead(self, wanted: DeadFilter, *, limit: int, after: tuple[datetime, str] | None = None) -> list[dict[str, Any]]:
        """The dead jobs that are wanted, the latest first, without their payloads.

        Args:
            wanted: which.
            limit: the most.
            after: the time of death and the id of the last one on the page before.
        """
        sql = "SELECT row FROM jobqueue.list_dead(%s::jsonb, %s, %s::timestamptz, %s::uuid) AS row"
        return await self._list(sql, _text(wanted), limit, *(after or (None, None)))

    async def dead_causes(self, wanted: DeadFilter, *, limit: int) -> Causes:
        """The dead jobs that are wanted in groups of one queue, kind and cause, the largest first.

        Args:
            wanted: which.
            limit: the most groups.
        """
        sql = "SELECT jobqueue.dead_causes(%s::jsonb, %s)"
        found = await self._inspect.run(_scalar(sql, _text(wanted), limit))
        assert isinstance(found, dict)  # noqa: S101 - jsonb, an object
        return Causes(found["causes"], found["more"])

    async def retry_dead(self, wanted: DeadFilter, *, dry_run: bool = False) -> int:
        """Run dead jobs again, the oldest first, at most `DEAD_BATCH`; return how many. A dry run counts all, and does nothing."""
        sql = "SELECT jobqueue.retry_dead(%s::jsonb, %s, %s)"
        return _int(await self._inspect.run(_scalar(sql, _text(wanted), None if dry_run else DEAD_BATCH, dry_run)))

    async def discard_dead(self, wanted: DeadFilter, *, dry_run: bool = False) -> int:
        """Delete dead jobs, the oldest first, at most `DEAD_BATCH`; return how many. A dry run counts all, and does nothing."""
        sql = "SELECT jobqueue.discard_dead(%s::jsonb, %s, %s)"
        return _int(await self._inspect.run(_scalar(sql, _text(wanted), None if dry_run else DEAD_BATCH, dry_run)))

    async def now(self) -> datetime:
        """The time, by the database's clock."""
        moment = await self._inspect.run(_scalar("SELECT clock_timestamp()"))
        assert isinstance(moment, datetime)  # noqa: S101 - timestamptz
        return moment

    async def _list(self, sql: str, *params: Any) -> list[dict[str, Any]]:
        return [dict(row["row"]) for row in await self._inspect.run(_rows(sql, *params))]


def _settle(connection: Connection, backend: tuple[int, str], *, patience: float = SETTLE_TIMEOUT) -> None:
    """Make sure that nothing more comes of a lost connection: its transaction is over, committed or rolled back, when this returns.

    Straight to PostgreSQL, a statement may still be on its way, and would take effect after we looked: its session is ended. A
    commit that is under way is not torn by that.

    Behind a pooler nobody's session is ended, for it may serve another client by now. There only a lost COMMIT leaves a doubt, and
    the lock that its transaction took is held for as long as that can take effect: wait for it. PostgreSQL itself rolls back a
    transaction whose COMMIT does not arrive within `database.ABANDONED_AFTER`.
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
            raise DatabaseUnavailable("the session of a lost connection does not end")
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
