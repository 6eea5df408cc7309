"""Claim what the workers will soon run: decide, then act.

The decision is a synchronous look at the local queues; the act is one claim for all of them. It is woken by a local submit, by a
notification, by a worker that runs low, and by the poll floor, which finds what every other hint missed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from contextlib import ExitStack

import structlog
import trio

from jobqueue import documents
from jobqueue.engine.handlers import Handler
from jobqueue.engine.leases import Lease
from jobqueue.engine.local_queue import LocalQueue
from jobqueue.engine.outcomes import Outcomes
from jobqueue.errors import ConnectionLost, DatabaseUnavailable, RefusedData
from jobqueue.job import Outcome
from jobqueue.metrics import Metrics
from jobqueue.storage.store import Ranks, Store, Want

LONGEST_BACKOFF = 2.0
"""Seconds between two claims while the database is away, at the most."""

AUDIT_INTERVAL = 10.0
"""Seconds between two comparisons of what the database says that this node holds with what it knows of."""

log = structlog.get_logger()


class Dispatcher:
    """Moves jobs from the database to the local queues.

    Args:
        queues: the queues that this node works, by name.
        handlers: by kind; their retry limits go with each claim.
        poll_interval: seconds after which every queue is looked at without a hint.

    Attributes:
        trouble: why PostgreSQL refused the last claim; None when it did not.
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        outcomes: Outcomes,
        metrics: Metrics,
        *,
        queues: Mapping[str, LocalQueue],
        handlers: Mapping[str, Handler],
        poll_interval: float,
    ) -> None:
        self._store = store
        self._lease = lease
        self._outcomes = outcomes
        self._metrics = metrics
        self._queues = queues
        self._poll_interval = poll_interval
        self._hint = trio.Event()
        self.trouble: str | None = None
        limits = {kind: handler.max_retries for kind, handler in handlers.items() if handler.max_retries is not None}
        self._default_retries = documents.encode(limits)

    def wake(self, best: Ranks) -> None:
        """Say that these queues got jobs, and of what rank at best; others than this node's are ignored."""
        for name, rank in best.items():
            queue = self._queues.get(name)
            if queue is not None:
                queue.hint(rank)
                self._hint.set()

    def wake_all(self) -> None:
        """Say that any queue may have got jobs of any rank."""
        self.wake(dict.fromkeys(self._queues, -math.inf))

    def look_again(self) -> None:
        """Say that a worker may soon have nothing to do."""
        self._hint.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Claim until cancelled. What a claim brought is always in a local queue before the cancellation is seen."""
        task_status.started()
        failures = 0
        poll_at = trio.current_time() + self._poll_interval
        audit_at = trio.current_time() + AUDIT_INTERVAL
        while True:
            self._hint = trio.Event()
            if trio.current_time() >= poll_at:
                self.wake_all()
                poll_at = trio.current_time() + self._poll_interval
            try:
                if trio.current_time() >= audit_at:
                    audit_at = trio.current_time() + AUDIT_INTERVAL
                    if self._lease.valid:
                        await self._hand_back_forgotten(self._lease.node.id)
                if wants := self._decide():
                    await self._claim(wants)
                    failures = 0
                    self.trouble = None
                    continue
            except (DatabaseUnavailable, RefusedData) as error:
                # A row that cannot be moved is no reason to end: the next node would meet it too, and so would every other.
                self.trouble = str(error) if isinstance(error, RefusedData) else None
                failures += 1
                if failures == 1:
                    log.warning("claim failed", error=str(error))
                await trio.sleep(min(LONGEST_BACKOFF, 0.05 * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1))
                continue
            with trio.move_on_at(min(poll_at, audit_at)):
                await self._hint.wait()

    def _decide(self) -> dict[str, Want]:
        """What to claim of each queue now; empty when there is nothing to do, or no lease to do it under."""
        if not self._lease.valid:
            return {}
        wants = {name: want for name, queue in self._queues.items() if (want := queue.wanted())}
        if wants and self.trouble is not None:
            # One row makes PostgreSQL refuse the whole claim: by ones and in turn, the others still come through.
            name = random.choice(list(wants))
            return {name: wants[name]._replace(jobs=1)}
        return wants

    async def _claim(self, wants: Mapping[str, Want]) -> None:
        node_id = self._lease.node.id
        started = trio.current_time()
        with ExitStack() as claiming:
            brought = {name: claiming.enter_context(self._queues[name].claiming(want)) for name, want in wants.items()}
            try:
                jobs = await self._store.claim(node_id, wants, self._default_retries)
            except ConnectionLost as lost:
                await self._reconcile(node_id, lost)
                return
            self._metrics.claim_seconds.observe(trio.current_time() - started)
            if node_id != self._lease.node.id:
                return  # the lease was lost meanwhile, and the jobs with it
            self._outcomes.held.update([(job.id, job.claims) for job in jobs])
            for job in jobs:
                brought[job.queue].append(job)
                if job.attempt == 1:
                    self._metrics.of(job.queue, job.kind).wait.observe(max(0.0, job.waited))

    async def _reconcile(self, node_id: str, lost: ConnectionLost) -> None:
        """The answer to a claim was lost: hand back what the database says this node holds and nobody here knows of."""
        log.warning("claim in doubt", error=str(lost))
        while node_id == self._lease.node.id:  # with the lease, the jobs are somebody else's
            try:
                await self._hand_back_forgotten(node_id, lost.backend)
                break
            except DatabaseUnavailable:
                await trio.sleep(random.uniform(0.5, 1))
        self.wake_all()

    async def _hand_back_forgotten(self, node_id: str, lost_backend: tuple[int, str] | None = None) -> None:
        known = frozenset(self._outcomes.held)  # before the question: what ends during it is not forgotten, and nothing is claimed
        forgotten = await self._store.held(node_id, backend=lost_backend) - known
        if forgotten:
            outcomes = [Outcome(id=job_id, claims=claims, outcome="released") for job_id, claims in sorted(forgotten)]
            await self._store.finish(node_id, outcomes)
            log.warning("forgotten claims handed back", jobs=len(forgotten))
