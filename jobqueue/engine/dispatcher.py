"""Claim the jobs that the workers will soon run.

The dispatcher first decides, synchronously, how many jobs each local queue needs. Then it makes one
claim for all of them. Three hints wake the dispatcher: a local submission, a notification, and a
worker that runs out of jobs. A regular poll finds jobs that no hint announced.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal, NamedTuple

import structlog
import trio

from jobqueue import documents
from jobqueue.concurrency.trouble import Trouble
from jobqueue.engine.handlers import Handler
from jobqueue.engine.leases import Lease
from jobqueue.engine.local_queue import LocalQueue
from jobqueue.engine.outcomes import Outcomes
from jobqueue.engine.signals import Signals
from jobqueue.errors import ConnectionLost, DatabaseUnavailable
from jobqueue.job import AttemptError, ClaimedJob, Outcome
from jobqueue.metrics import Metrics
from jobqueue.storage.claims import Claimed, Expired, Unreadable
from jobqueue.storage.roles.run import Claim, Ranks, RunStore, Want
from jobqueue.storage.roles.submit import Submitted

AUDIT_INTERVAL = 10.0
"""Seconds between two audits. An audit compares the jobs that this node holds with the jobs that the database records for it."""

DOUBT_INTERVAL = 0.1
"""First interval between audits, in seconds, after the response to a claim was lost. The interval
doubles after each audit, until the claim's transaction has ended."""

MAX_REASON = 500
"""Maximum length of the reason of a job that this node cannot read, in characters."""

LOOK_EVERYWHERE_SHARE = 200
LONGEST_WITHOUT_LOOK = 30.0
"""Limits for polls that claim without a floor. Such a claim can be slow while an old transaction holds back vacuum.

After a claim without a floor that takes *t*, polls use the floor for the next
`LOOK_EVERYWHERE_SHARE` times *t*, but for `LONGEST_WITHOUT_LOOK` seconds at most.
"""

log = structlog.get_logger()


class Along(NamedTuple):
    """A claim in the transaction of a submission, and the function that takes the claimed jobs."""

    claim: Claim
    bring: Callable[[Claimed], None]

    def take(self, submitted: Submitted) -> Ranks:
        """Give the claimed jobs to the workers; return the best ranks of the queues where more jobs may be pending."""
        if submitted.claimed is None:
            return submitted.best
        self.bring(submitted.claimed)
        brought = Counter([job.queue for job in submitted.claimed])
        return {
            queue: rank
            for queue, rank in submitted.best.items()
            if queue not in self.claim.wants or brought[queue] == self.claim.wants[queue].jobs
        }


class Dispatcher:
    """Moves jobs from the database to the local queues.

    ::

        stopped ──> ready ──> acting ──> ready
                      └─────> along ───> ready, or acting if the dispatcher waits

    - *stopped*: `run` has not started or has ended. It can end in any state.
    - *ready*: nobody claims.
    - *acting*: the dispatcher claims, audits, or releases jobs.
    - *along*: the transaction of a submission claims jobs. The dispatcher waits for its end.

    Args:
        queues: the queues of this node, by name.
        handlers: the handlers by kind. Each claim sends their retry limits.
        poll_interval: seconds between polls of every queue.
    """

    def __init__(
        self,
        store: RunStore,
        lease: Lease,
        outcomes: Outcomes,
        metrics: Metrics,
        signals: Signals,
        *,
        queues: Mapping[str, LocalQueue],
        handlers: Mapping[str, Handler],
        poll_interval: float,
    ) -> None:
        self._store = store
        self._lease = lease
        self._outcomes = outcomes
        self._metrics = metrics
        self._signals = signals
        self._queues = queues
        self._poll_interval = poll_interval
        self._state: Literal["stopped", "ready", "acting", "along"] = "stopped"
        self._hint = trio.Event()
        self._along_ended = trio.lowlevel.ParkingLot()
        self._audit_at = math.inf
        self._lost: list[tuple[int, str]] = []  # the backends of claims whose responses were lost
        self._doubt_interval = DOUBT_INTERVAL
        self._look_everywhere_at = -math.inf
        self._again_at: dict[str, float] = {}  # queues where a limit cut the claim short, and when to claim again
        self._paused_jobs: list[ClaimedJob] = []
        self._unreadable: list[Unreadable] = []
        self._pausing: set[str] = set()  # paused queues whose ready jobs are not yet released
        self.trouble = Trouble("claims", vital=True)
        limits = {kind: handler.max_retries for kind, handler in handlers.items() if handler.max_retries is not None}
        self._default_retries = documents.encode(limits)
        signals.jobs_available.subscribe(self.wake)
        signals.listening.subscribe(self.wake_all)
        signals.lease_held.subscribe(self.wake_all)
        signals.queues_freed.subscribe(self.freed)
        signals.queue_paused.subscribe(self.pause)
        signals.workers_hungry.subscribe(self.look_again)

    def wake(self, best: Ranks) -> None:
        """Record that these queues received jobs, with the best rank of each. Ignores queues of other nodes."""
        for name, rank in best.items():
            queue = self._queues.get(name)
            if queue is not None:
                queue.hint(rank)
                self._hint.set()

    def wake_all(self) -> None:
        """Record that any queue may have received jobs of any rank."""
        self.wake(dict.fromkeys(self._queues, -math.inf))

    def freed(self, queues: Iterable[str]) -> None:
        """Claim again from these queues: jobs have ended or limits have changed, so a limit may have room."""
        for name in self._again_at.keys() & set(queues) if self._again_at else ():
            del self._again_at[name]
            self.wake({name: math.inf})

    def pause(self, name: str) -> None:
        """Release the queue's claimed jobs that have not started, because it was paused."""
        queue = self._queues.get(name)
        if queue is not None:
            self._pausing.add(name)
            self._paused_jobs += queue.ready.clear()
            self._hint.set()

    def look_again(self) -> None:
        """Decide again whether to claim, because a worker may soon run out of jobs."""
        self._hint.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Claim until cancelled. Before a cancellation takes effect, all claimed jobs are in a local queue."""
        self._state = "ready"
        task_status.started()
        try:
            await self._run()
        finally:
            self._state = "stopped"

    async def _run(self) -> None:
        poll_at = trio.current_time() + self._poll_interval
        self._audit_at = trio.current_time() + AUDIT_INTERVAL
        while True:
            self._hint = trio.Event()
            if trio.current_time() >= poll_at:
                self._poll()
                poll_at = trio.current_time() + self._poll_interval
            acted = False
            with self.trouble.contained():
                acted = await self._act()
            if pause := self.trouble.pause:
                await trio.sleep(pause)
                continue
            if acted:
                continue
            with trio.move_on_at(min(poll_at, self._audit_at, *self._again_at.values())):
                await self._hint.wait()
            now = trio.current_time()
            self.freed([name for name, again_at in self._again_at.items() if again_at <= now])

    def _poll(self) -> None:
        """Look for jobs that no hint announced."""
        if trio.current_time() >= self._look_everywhere_at:
            self.wake_all()
        else:
            self.wake(dict.fromkeys(self._queues, math.inf))  # a poll is not evidence of a better rank, so keep the floor

    async def _act(self) -> bool:
        """Do the work that is due; return whether that included a claim."""
        if self._state == "along":
            await self._along_ended.park()
        self._state = "acting"
        try:
            await trio.lowlevel.checkpoint()  # other tasks may add hints, so that one claim serves them too
            # No claim is running, and later claims skip paused queues, so no more jobs of paused queues can arrive.
            self._pausing.clear()
            while self._paused_jobs:
                await self._outcomes.release([self._paused_jobs.pop()])
            while self._unreadable:
                await self._bury(self._unreadable.pop())
            if trio.current_time() >= self._audit_at:
                await self._audit()
            if wants := self._decide():
                await self._claim(wants)
            return bool(wants)
        finally:
            self._state = "ready"

    def _decide(self) -> dict[str, Want]:
        """Return how many jobs to claim from each queue. The result is empty if no queue needs jobs, or without a valid lease."""
        if not self._lease.valid:
            return {}
        return {name: want for name, queue in self._queues.items() if (want := queue.wanted())}

    async def _claim(self, wants: Mapping[str, Want]) -> None:
        node_id = self._lease.node.id
        started = trio.current_time()
        with self._claiming(wants) as bring:
            try:
                jobs = await self._store.claim(node_id, wants, self._default_retries)
            except ConnectionLost as lost:
                self.audit(lost)
                raise
            took = trio.current_time() - started
            self._metrics.claim_seconds.observe(took)
            if any(want.floor is None for want in wants.values()):
                self._look_everywhere_at = started + min(took * LOOK_EVERYWHERE_SHARE, LONGEST_WITHOUT_LOOK)
            bring(jobs)

    @contextmanager
    def _claiming(self, wants: Mapping[str, Want]) -> Iterator[Callable[[Claimed], None]]:
        """Yield a function that takes the result of one claim. On exit, the jobs are ready for the workers."""
        node_id = self._lease.node.id
        asked_at = trio.current_time()
        with ExitStack() as claiming:
            brought = {name: claiming.enter_context(self._queues[name].claiming(want)) for name, want in wants.items()}

            def bring(claimed: Claimed) -> None:
                jobs: Sequence[ClaimedJob] = claimed
                if [job for job in jobs if job.options is not None]:
                    jobs = self._in_time(jobs, asked_at)
                if node_id != self._lease.node.id:
                    return  # the lease was lost during the claim, so other nodes have the jobs
                self._outcomes.held.update([(job.id, job.claims) for job in jobs])
                if claimed.unreadable:
                    self._outcomes.held.update([(job.id, job.claims) for job, _ in claimed.unreadable])
                    self._unreadable += claimed.unreadable
                    # Unreadable jobs used up part of this claim's limit, so more jobs may be pending.
                    self.wake(dict.fromkeys(wants, -math.inf))
                for name in self._again_at.keys() & wants.keys() if self._again_at else ():
                    del self._again_at[name]
                for name, seconds in claimed.again.items():
                    self._again_at[name] = trio.current_time() + seconds
                if claimed.dead:
                    # Dead jobs used up part of this claim's limit, so more jobs may be pending.
                    self.wake(dict.fromkeys([job.queue for job in claimed.dead], -math.inf))
                    self._signals.jobs_expired.publish(claimed.dead)
                for job in self._without_paused(jobs) if self._pausing else jobs:
                    brought[job.queue].append(job)
                    if job.attempt == 1:
                        self._metrics.of(job.queue, job.kind).wait.observe(max(0.0, job.waited))

            yield bring

    def _in_time(self, jobs: Sequence[ClaimedJob], asked_at: float) -> list[ClaimedJob]:
        """Remove the jobs that expired before the claim. For each remaining job, set the time by which it must start."""
        late = [job for job in jobs if job.expired]
        if late:
            # Expired jobs used up part of this claim's limit, so more jobs may be pending.
            self.wake({job.queue: job.rank for job in late})
            self._signals.jobs_expired.publish([Expired(job.id, job.queue, job.kind, job.attempt - 1) for job in late])
        for job in jobs:
            if job.options is not None:
                seconds = None if job.options.expires_at is None else job.options.expires_in
                job.options.start_by = None if seconds is None else asked_at + seconds
        return [job for job in jobs if not job.expired]

    def _without_paused(self, jobs: Sequence[ClaimedJob]) -> list[ClaimedJob]:
        """Hold back the jobs of queues that were paused while the claim ran."""
        self._paused_jobs += [job for job in jobs if job.queue in self._pausing]
        self._hint.set()
        return [job for job in jobs if job.queue not in self._pausing]

    def can_start(self, due: Mapping[str, int]) -> bool:
        """Return whether this node could start this many jobs of each queue at once."""
        if self._state == "stopped":
            return False
        return all(name in self._queues and jobs <= self._queues[name].idle_capacity for name, jobs in due.items())

    @contextmanager
    def along(self, due: Mapping[str, int]) -> Iterator[Along | None]:
        """Claim in the transaction of a submission, so that a job needs only one commit before its handler starts.

        Yields None unless this is certain to help: the node has idle workers, and no other claim is
        running.

        Args:
            due: number of submitted jobs by queue.
        """
        wants = {
            name: want for name, jobs in due.items() if name in self._queues and (want := self._queues[name].wanted_along(jobs))
        }
        if not (wants and self._state == "ready" and self._lease.valid and self.trouble.reason is None):
            yield None
            return
        self._state = "along"
        try:
            with self._claiming(wants) as bring:
                yield Along(Claim(self._lease.node.id, wants, self._default_retries), bring)
        finally:
            if self._state == "along":  # the dispatcher may have stopped
                self._state = "acting" if self._along_ended.unpark() else "ready"

    def audit(self, lost: ConnectionLost) -> None:
        """Start audits soon, because the response to a claim was lost.

        Claims continue meanwhile. An audit releases the jobs of the lost claim once its transaction
        has ended.
        """
        self._lost.append(lost.backend)
        self._doubt_interval = DOUBT_INTERVAL / 2
        self._audit_at = -math.inf
        self._hint.set()

    async def _audit(self) -> None:
        """Release the jobs that the database records for this node, but that the node does not hold."""
        self._doubt_interval = min(AUDIT_INTERVAL, self._doubt_interval * 2)
        self._audit_at = trio.current_time() + (self._doubt_interval if self._lost else AUDIT_INTERVAL)
        if not self._lease.valid:
            return
        node_id = self._lease.node.id
        lost = tuple(self._lost)
        # Read the held jobs before the query, so that a job that ends during the query is not released. No claim runs meanwhile.
        known = frozenset(self._outcomes.held)
        try:
            forgotten = await self._store.held(node_id, lost=lost) - known
        except DatabaseUnavailable as error:
            if not lost:
                raise
            log.debug("a claim without a response is still unresolved", error=str(error))
            return
        if lost:
            del self._lost[: len(lost)]
            self._audit_at = trio.current_time() + AUDIT_INTERVAL
        if forgotten:
            outcomes = [Outcome(id=job_id, claims=claims, outcome="released") for job_id, claims in sorted(forgotten)]
            await self._store.finish(node_id, outcomes)
            log.warning("forgotten claims released", jobs=len(forgotten))
            self.wake_all()

    async def _bury(self, unreadable: Unreadable) -> None:
        """Mark a job as dead because no node can read it. Otherwise, nodes would claim the job again and again."""
        job = unreadable.job
        reason = documents.storable(f"the job cannot be read: {unreadable.reason}", MAX_REASON)
        log.error("job died", **job.log_context, reason=reason)
        error = AttemptError(attempt=job.attempt, error=reason, duration=0.0)
        outcome = Outcome(id=job.id, claims=job.claims, outcome="dead", reason=reason, error=error)
        await self._outcomes.put(job, outcome, self._lease.node.id)
