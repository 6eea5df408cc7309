"""The operations of a running node. The HTTP routes call them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from typing import Any

import msgspec

from jobqueue.admission import Admitted, Receipt
from jobqueue.concurrency.group_commit import Told, until_told
from jobqueue.concurrency.trouble import Trouble
from jobqueue.engine.depths import Depths
from jobqueue.engine.history import look_back
from jobqueue.engine.job_watcher import JobWatcher, Watch
from jobqueue.engine.leases import Lease
from jobqueue.engine.local_queue import LocalQueue
from jobqueue.engine.outcomes import Outcomes
from jobqueue.engine.overview import Overview, Page
from jobqueue.engine.submission import Submissions
from jobqueue.engine.task_tree import TaskState, TaskTree
from jobqueue.errors import ConflictingJob, DatabaseUnavailable, KeyInUse, ShuttingDown
from jobqueue.job import Change
from jobqueue.job_filters import DeadFilter, JobFilter
from jobqueue.metrics import CONTENT_TYPE, Metrics
from jobqueue.queue_settings import QueueSettings
from jobqueue.storage.roles import Store
from jobqueue.timetable import CronSchedule


class Operations:
    """The public operations of one node."""

    def __init__(
        self,
        store: Store,
        lease: Lease,
        submissions: Submissions,
        outcomes: Outcomes,
        metrics: Metrics,
        *,
        troubles: Iterable[Trouble],
        watcher: JobWatcher,
        depths: Depths,
        overview: Overview,
        tasks: TaskTree,
        queues: Iterable[LocalQueue],
        keep_cancelled: bool,
        stopping: Callable[[], bool],
        server_trouble: Callable[[], str | None],
    ) -> None:
        self._keep_cancelled = keep_cancelled
        self._store = store
        self._lease = lease
        self._submissions = submissions
        self._outcomes = outcomes
        self._troubles = troubles
        self._watcher = watcher
        self._depths = depths
        self._overview = overview
        self._tasks = tasks
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

    def troubles(self) -> list[str]:
        """Return why this node is not ready; empty if it is ready."""
        if self._stopping():
            return ["shutting down"]
        reasons = [] if self._lease.valid else ["the lease is not valid: this node claims no jobs"]
        if (down := self._server_trouble()) is not None:
            reasons.append(f"the embedded PostgreSQL is down: {down}")
        failing: dict[str, list[str]] = {}
        for trouble in self._troubles:
            if trouble.vital and trouble.reason is not None:
                failing.setdefault(trouble.reason, []).append(trouble.part)
        reasons += [f"failing: {', '.join(parts)}: {reason}" for reason, parts in failing.items()]
        reasons += [f"a {name} has been running for {seconds:.0f} s" for name, seconds in self._store.slow_calls().items()]
        return reasons

    async def metrics(self) -> tuple[bytes, str]:
        """Render this node's metrics, and the depths of all queues while the database is available."""
        # Without the depths, a scrape still gets the node's own counters, which matter most in an outage.
        if not self.troubles():
            with suppress(DatabaseUnavailable):
                depths = await self._depths.counted()
                self._metrics.set_depths((depth.queue, depth.state, depth.jobs, depth.oldest) for depth in depths)
        for queue in self._queues:
            self._metrics.workers.labels(queue.name).set(queue.concurrency)
            self._metrics.running.labels(queue.name).set(len(queue.runs))
            self._metrics.ready.labels(queue.name).set(len(queue.ready))
        self._metrics.inflight.set(len(self._outcomes.held))
        self._metrics.lease_remaining.set(max(0.0, self._lease.remaining))
        self._metrics.waiting_submissions.set(self._submissions.statistics().waiting)
        return self._metrics.render(), CONTENT_TYPE

    async def job(self, id: str) -> dict[str, Any] | None:  # noqa: A002 - the route's word
        """Return one job with all its fields; None if it does not exist."""
        row = await self._store.job(id)
        if row is None:
            return None
        saved = row.pop("saved")
        noted = saved if isinstance(saved, dict) else {}
        options = _asked(row["options"])
        return {**row, "options": options, "progress": noted.get("progress"), "checkpoint": noted.get("checkpoint")}

    def watch(self, id: str) -> AbstractContextManager[Watch]:  # noqa: A002
        """Watch a job; see `JobWatcher.watch`."""
        return self._watcher.watch(id)

    async def jobs(self, wanted: JobFilter, limit: int, after: str | None) -> dict[str, Any]:
        """Return a page of the matching jobs, and the start of the next page."""
        page = await self._store.jobs(wanted, limit=limit, after=after)
        return {"jobs": [{**row, "options": _asked(row["options"])} for row in page.jobs], "next": page.next}

    async def cancel_jobs(self, wanted: JobFilter, dry_run: bool) -> int:
        """Cancel all matching jobs, 1,000 per transaction. With `dry_run`, only count them. Return the number of jobs."""
        total, place = 0, None
        while True:
            walk = await self._store.cancel_jobs(wanted, keep=self._keep_cancelled, after=place, dry_run=dry_run)
            total += walk.jobs
            place = walk.next
            if place is None:
                return total

    async def change(self, id: str, change: Change) -> bool:  # noqa: A002
        changed = await self._store.change(id, change)
        self._watcher.look_soon(id)
        return changed

    async def cancel(self, id: str) -> bool:  # noqa: A002
        cancelled = await self._store.cancel(id, keep=self._keep_cancelled)
        self._watcher.look_soon(id)
        return cancelled

    async def retry(self, id: str) -> bool:  # noqa: A002
        try:
            return await self._store.retry(id)
        except KeyInUse as error:
            raise ConflictingJob(f"the job cannot be retried: {error}", field=error.field) from None

    async def discard(self, id: str) -> bool:  # noqa: A002
        return await self._store.discard(id)

    async def dead(self, wanted: DeadFilter, limit: int, after: tuple[datetime, str] | None) -> list[dict[str, Any]]:
        rows = await self._store.dead(wanted, limit=limit, after=after)
        return [{**row, "options": _asked(row["options"])} for row in rows]

    async def dead_causes(self, wanted: DeadFilter, limit: int) -> dict[str, Any]:
        causes = await self._store.dead_causes(wanted, limit=limit)
        return {"causes": causes.causes, "more": causes.more}

    async def retry_dead(self, wanted: DeadFilter, dry_run: bool) -> int:
        """Redrive all matching dead letters, 1,000 per transaction. With `dry_run`, only count them. Return the number of jobs."""
        if dry_run:
            return await self._store.retry_dead(wanted, dry_run=True)
        return await self._repeat(self._store.retry_dead, wanted)

    async def discard_dead(self, wanted: DeadFilter, dry_run: bool) -> int:
        """Delete all matching dead letters, 1,000 per transaction. With `dry_run`, only count them. Return the number of jobs."""
        if dry_run:
            return await self._store.discard_dead(wanted, dry_run=True)
        return await self._repeat(self._store.discard_dead, wanted)

    async def _repeat(self, verb: Callable[[DeadFilter], Awaitable[int]], wanted: DeadFilter) -> int:
        # Exclude jobs that die from now on, such as jobs that this call redrove. Otherwise, this call might never end.
        now = await self._store.now()
        wanted = msgspec.structs.replace(wanted, died_before=min(now, wanted.died_before or now))
        total = 0
        while jobs := await verb(wanted):
            total += jobs
        return total

    async def queues(self) -> list[dict[str, Any]]:
        """Return every known queue with its depth and oldest job's age by state, and its recent throughput on all nodes."""
        return await self._depths.queues()

    async def queue(self, name: str) -> dict[str, Any] | None:
        """Return one queue as `queues` does; None if it is unknown."""
        return next((row for row in await self.queues() if row["name"] == name), None)

    async def pause(self, queue: str, paused: bool) -> None:
        await self._store.pause(queue, paused=paused)

    async def configure(self, queue: str, settings: QueueSettings) -> dict[str, Any]:
        """Change a queue's settings; return all its settings."""
        await self._store.configure(queue, settings)
        [row] = [row for row in await self._store.queues() if row["name"] == queue]
        return row

    async def history(self, seconds: int) -> dict[str, Any]:
        """Return the history of all nodes; see `look_back`."""
        return await look_back(self._store, seconds)

    def watch_overview(self, seconds: int) -> AbstractContextManager[Page]:
        """Watch queues, nodes and history; see `Overview.watch`."""
        return self._overview.watch(seconds)

    async def nodes(self) -> list[dict[str, Any]]:
        return await self._store.nodes()

    def tasks(self) -> dict[str, Any]:
        """Return the tree of this process's Trio tasks."""
        tree = self._tasks.look()
        return {"node": self._lease.node.id, "at": datetime.now(UTC).isoformat(), "tasks": tree.tasks, "root": _shown(tree.root)}

    async def schedules(self, name: str | None = None) -> list[dict[str, Any]]:
        return await self._store.schedules(name)

    async def put_schedule(self, schedule: CronSchedule) -> bool:
        return await self._store.put_schedule(schedule)

    async def unschedule(self, name: str) -> bool:
        return await self._store.unschedule(name)

    async def pause_schedule(self, name: str, paused: bool) -> bool:
        return await self._store.pause_schedule(name, paused=paused)

    async def trigger_schedule(self, name: str) -> str | None:
        return await self._store.trigger_schedule(name)


def _shown(task: TaskState) -> dict[str, Any]:
    job = None if task.run is None else task.run.job
    return {
        "name": task.name,
        "waits_on": task.waits_on,
        "stack": task.stack,
        "since": task.since,
        "job": None if job is None else {"id": job.id, "kind": job.kind, "queue": job.queue},
        "nurseries": [{"tasks": [_shown(child) for child in nursery]} for nursery in task.nurseries],
        "more": task.more,
    }


def _asked(options: Any) -> Any:
    """Return a job's options as the caller gave them: without internal fields, and with times as ISO 8601 text."""
    if not isinstance(options, dict):
        return options
    asked = {name: value for name, value in options.items() if name not in {"rank", "turn"}}
    for name in ("expires_at", "scheduled_for"):
        with suppress(KeyError, TypeError, ValueError, OverflowError):  # user SQL may have written any value
            asked[name] = datetime.fromtimestamp(asked[name], UTC).isoformat()
    return asked or None
