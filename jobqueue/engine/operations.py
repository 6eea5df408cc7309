"""What a person or a program may ask of a running node: the verbs behind the HTTP routes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import trio

from jobqueue.admission import Admitted
from jobqueue.concurrency.group_commit import Told, until_told
from jobqueue.engine.dispatcher import Dispatcher
from jobqueue.engine.leases import Lease
from jobqueue.engine.local_queue import LocalQueue
from jobqueue.engine.outcomes import Outcomes
from jobqueue.engine.submission import Submissions
from jobqueue.errors import DatabaseUnavailable, ShuttingDown
from jobqueue.job import QueueSettings
from jobqueue.metrics import CONTENT_TYPE, Metrics
from jobqueue.storage.store import Depth, Store

DEPTH_INTERVAL = 1.0
"""Seconds for which counted depths are shown again, at the least."""

DEPTH_SHARE = 20
"""Depths are shown again for this many times as long as counting them took: with a million jobs it stays cheap."""


class Operations:
    """One node, as seen from outside."""

    def __init__(
        self,
        store: Store,
        lease: Lease,
        submissions: Submissions,
        outcomes: Outcomes,
        metrics: Metrics,
        *,
        dispatcher: Dispatcher,
        queues: Iterable[LocalQueue],
        stopping: Callable[[], bool],
    ) -> None:
        self._store = store
        self._lease = lease
        self._submissions = submissions
        self._outcomes = outcomes
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._queues = list(queues)
        self._stopping = stopping
        self._counting = trio.Lock()
        self._count_again_at = -1.0
        self._counted: list[Depth] = []

    async def submit(self, jobs: Admitted) -> None:
        """Commit jobs; see `Submissions.submit`."""
        await until_told(lambda told: self.begin(jobs, told))

    def begin(self, jobs: Admitted, told: Told[None]) -> None:
        """Have jobs committed; see `Submissions.begin`."""
        if self._stopping():
            raise ShuttingDown("the service is shutting down")
        self._submissions.begin(jobs, told)

    def troubles(self) -> list[str]:
        """Why this node cannot work now; empty when it can."""
        if self._stopping():
            return ["shutting down"]
        troubles = [] if self._lease.valid else ["the lease is not valid: nothing is claimed"]
        if self._store.trouble is not None:
            troubles.append(f"the database cannot be used: {self._store.trouble}")
        if self._dispatcher.trouble is not None:
            troubles.append(f"PostgreSQL refuses to claim: {self._dispatcher.trouble}")
        return troubles

    async def metrics(self) -> tuple[bytes, str]:
        """Render the metrics: this node's counters, and the depths of all queues while the database answers."""
        # The node's own counters are worth a scrape without the depths, and now more than ever.
        if not self.troubles():
            with suppress(DatabaseUnavailable):
                depths = await self._depths()
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
        return await self._store.job(id)

    async def cancel(self, id: str) -> bool:  # noqa: A002
        return await self._store.cancel(id)

    async def retry(self, id: str) -> bool:  # noqa: A002
        return await self._store.retry(id)

    async def discard(self, id: str) -> bool:  # noqa: A002
        return await self._store.discard(id)

    async def queues(self) -> list[dict[str, Any]]:
        """Every queue that is known, with its depth by state."""
        depths: dict[str, dict[str, int]] = {}
        for depth in await self._depths():
            depths.setdefault(depth.queue, {})[depth.state] = depth.jobs
        known = {row["name"]: row for row in await self._store.queues()}
        for name in depths.keys() - known.keys():
            known[name] = {"name": name, "paused": False}
        return [{**known[name], "depth": depths.get(name, {})} for name in sorted(known)]

    async def pause(self, queue: str, paused: bool) -> None:
        await self._store.pause(queue, paused=paused)

    async def configure(self, queue: str, settings: QueueSettings) -> dict[str, Any]:
        """Set what holds for a queue, and return how it stands then."""
        await self._store.configure(queue, settings)
        [row] = [row for row in await self._store.queues() if row["name"] == queue]
        return row

    async def nodes(self) -> list[dict[str, Any]]:
        return await self._store.nodes()

    async def _depths(self) -> list[Depth]:
        """Count the depths, or give the last count again while it is young."""
        async with self._counting:
            started = trio.current_time()
            if started >= self._count_again_at:
                self._counted = await self._store.depths()
                took = trio.current_time() - started
                self._count_again_at = started + max(DEPTH_INTERVAL, took * DEPTH_SHARE)
            return self._counted
