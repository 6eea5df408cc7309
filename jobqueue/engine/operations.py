"""The operations of a running node that the HTTP routes call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import msgspec

from jobqueue.admission import Admitted, Receipt
from jobqueue.concurrency.group_commit import Told, until_told
from jobqueue.concurrency.trouble import Trouble
from jobqueue.engine.depths import Depths
from jobqueue.engine.hold import Hold
from jobqueue.engine.job_watcher import JobWatcher
from jobqueue.engine.leases import Lease
from jobqueue.engine.local_queue import LocalQueue
from jobqueue.engine.outcomes import Outcomes
from jobqueue.engine.overview import OverviewWatcher
from jobqueue.engine.submission import Submissions
from jobqueue.engine.task_tree import TaskTree
from jobqueue.errors import ConflictingJob, DatabaseUnavailable, KeyInUse, ShuttingDown
from jobqueue.job import Change
from jobqueue.job_filters import DeadFilter, JobFilter
from jobqueue.metrics import CONTENT_TYPE, Metrics
from jobqueue.storage.roles import Store


class Operations:
    """The operations of one node that do more than call the store.

    Attributes:
        store: for all other operations.
        lease, watcher, depths, overview, tasks: parts of the node that HTTP routes read.
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        submissions: Submissions,
        outcomes: Outcomes,
        metrics: Metrics,
        *,
        hold: Hold,
        troubles: Iterable[Trouble],
        watcher: JobWatcher,
        depths: Depths,
        overview: OverviewWatcher,
        tasks: TaskTree,
        queues: Iterable[LocalQueue],
        keep_cancelled: bool,
        stopping: Callable[[], bool],
        server_trouble: Callable[[], str | None],
    ) -> None:
        self.store = store
        self.lease = lease
        self._hold = hold
        self.watcher = watcher
        self.depths = depths
        self.overview = overview
        self.tasks = tasks
        self._keep_cancelled = keep_cancelled
        self._submissions = submissions
        self._outcomes = outcomes
        self._troubles = troubles
        self._metrics = metrics
        self._queues = list(queues)
        self._stopping = stopping
        self._server_trouble = server_trouble

    async def submit(self, jobs: Admitted) -> Receipt | None:
        """Commit jobs; see `Submissions.submit`."""
        return await until_told(lambda told: self.begin(jobs, told))

    def begin(self, jobs: Admitted, told: Told[Receipt | None]) -> None:
        """Start to commit jobs; see `Submissions.begin`."""
        if self._stopping():
            raise ShuttingDown("the service is shutting down")
        self._submissions.begin(jobs, told)

    def health(self) -> dict[str, str]:
        """Return the document of a node that responds, with the reason if it is on hold."""
        return {"status": "ok"} if self._hold.reason is None else {"status": "ok", "on_hold": self._hold.reason}

    def troubles(self) -> list[str]:
        """Return why this node is not ready; empty if it is ready."""
        if self._stopping():
            return ["shutting down"]
        reasons = [] if self.lease.valid else ["the lease is not valid: this node claims no jobs"]
        if (down := self._server_trouble()) is not None:
            reasons.append(f"the embedded PostgreSQL is down: {down}")
        failing: dict[str, list[str]] = {}
        for trouble in self._troubles:
            if trouble.vital and trouble.reason is not None:
                failing.setdefault(trouble.reason, []).append(trouble.part)
        reasons += [f"failing: {', '.join(parts)}: {reason}" for reason, parts in failing.items()]
        reasons += [f"a {name} has been running for {seconds:.0f} s" for name, seconds in self.store.slow_calls().items()]
        return reasons

    async def metrics(self) -> tuple[bytes, str]:
        """Render this node's metrics, and the depths of all queues while the database is available."""
        # Without the depths, a scrape still gets the node's own counters, which matter most in an outage.
        if not self.troubles():
            with suppress(DatabaseUnavailable):
                depths = await self.depths.counted()
                self._metrics.set_depths((depth.queue, depth.state, depth.jobs, depth.oldest) for depth in depths)
        for queue in self._queues:
            self._metrics.workers.labels(queue.name).set(queue.concurrency)
            self._metrics.running.labels(queue.name).set(len(queue.runs))
            self._metrics.ready.labels(queue.name).set(len(queue.ready))
        self._metrics.inflight.set(len(self._outcomes.held))
        self._metrics.lease_remaining.set(max(0.0, self.lease.remaining))
        self._metrics.waiting_submissions.set(self._submissions.statistics().waiting)
        return self._metrics.render(), CONTENT_TYPE

    async def cancel_jobs(self, wanted: JobFilter, dry_run: bool) -> int:
        """Cancel all matching jobs, 1,000 per transaction. With `dry_run`, only count them. Return the number of jobs."""
        total, place = 0, None
        while True:
            walk = await self.store.cancel_jobs(wanted, keep=self._keep_cancelled, after=place, dry_run=dry_run)
            total += walk.jobs
            place = walk.next
            if place is None:
                return total

    async def change(self, job_id: str, change: Change) -> bool:
        """Change a waiting job. Return False if it is not waiting."""
        changed = await self.store.change(job_id, change)
        self.watcher.look_soon(job_id)
        return changed

    async def cancel(self, job_id: str) -> bool:
        """Cancel a waiting job, or request the cancellation of a running one. Return False if it has ended or does not exist."""
        cancelled = await self.store.cancel(job_id, keep=self._keep_cancelled)
        self.watcher.look_soon(job_id)
        return cancelled

    async def retry(self, job_id: str) -> bool:
        """Run a dead job again. Return False if it is not dead.

        Raises:
            ConflictingJob: another job has its unique key.
        """
        try:
            return await self.store.retry(job_id)
        except KeyInUse as error:
            raise ConflictingJob(f"the job cannot be retried: {error}", field=error.field) from None

    async def retry_dead(self, wanted: DeadFilter, dry_run: bool) -> int:
        """Redrive all matching dead letters, 1,000 per transaction. With `dry_run`, only count them. Return the number of jobs."""
        if dry_run:
            return await self.store.retry_dead(wanted, dry_run=True)
        return await self._repeat(self.store.retry_dead, wanted)

    async def discard_dead(self, wanted: DeadFilter, dry_run: bool) -> int:
        """Delete all matching dead letters, 1,000 per transaction. With `dry_run`, only count them. Return the number of jobs."""
        if dry_run:
            return await self.store.discard_dead(wanted, dry_run=True)
        return await self._repeat(self.store.discard_dead, wanted)

    async def _repeat(self, verb: Callable[[DeadFilter], Awaitable[int]], wanted: DeadFilter) -> int:
        # Exclude jobs that die from now on, such as jobs that this call redrove. Otherwise, this call might never end.
        now = await self.store.now()
        wanted = msgspec.structs.replace(wanted, died_before=min(now, wanted.died_before or now))
        total = 0
        while jobs := await verb(wanted):
            total += jobs
        return total
