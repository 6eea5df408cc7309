"""Claim what the workers will soon run: decide, then act.

The decision is a synchronous look at the local queues; the act is one claim for all of them. It is woken by a local submit, by a
notification, by a worker that runs low, and by the poll floor, which finds what every other hint missed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import structlog
import trio

from jobqueue import documents
from jobqueue.concurrency.trouble import Trouble
from jobqueue.engine.handlers import Handler
from jobqueue.engine.leases import Lease
from jobqueue.engine.local_queue import LocalQueue
from jobqueue.engine.outcomes import Outcomes
from jobqueue.errors import ConnectionLost, DatabaseUnavailable
from jobqueue.job import AttemptError, ClaimedJob, Outcome
from jobqueue.metrics import Metrics
from jobqueue.storage.claims import Claimed, Expired, Unreadable
from jobqueue.storage.store import Claim, Ranks, Store, Submitted, Want

AUDIT_INTERVAL = 10.0
"""Seconds between two comparisons of what the database says that this node holds with what it knows of."""

DOUBT_INTERVAL = 0.1
"""The same at first, while the answer to a claim is lost and its transaction may not be over; then twice as long each time."""

MAX_REASON = 500
"""The longest reason of a job that this node cannot read, in characters."""

LOOK_EVERYWHERE_SHARE = 200
LONGEST_WITHOUT_LOOK = 30.0
"""Where claims that look below the floor take long, as while an old transaction holds back vacuum, a poll has them do so only after
this many times as long, or so many seconds."""

log = structlog.get_logger()


class Along(NamedTuple):
    """A claim that goes along with a submission: what to ask for, and what takes the jobs that came of it."""

    claim: Claim
    bring: Callable[[Claimed], None]

    def take(self, submitted: Submitted) -> Ranks:
        """Give the claimed jobs to the workers; return the best ranks of the queues where more may be pending."""
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

    Args:
        queues: the queues that this node works, by name.
        handlers: by kind; their retry limits go with each claim.
        poll_interval: seconds after which every queue is looked at without a hint.
        on_expired: called with the jobs that died instead of being claimed.
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
        on_expired: Callable[[Sequence[Expired]], None],
    ) -> None:
        self._on_expired = on_expired
        self._store = store
        self._lease = lease
        self._outcomes = outcomes
        self._metrics = metrics
        self._queues = queues
        self._poll_interval = poll_interval
        self._hint = trio.Event()
        self._one_claim = trio.Lock()  # whoever claims, or asks for what was claimed, is the only one
        self._running = False
        self._audit_at = math.inf
        self._lost: list[tuple[int, str]] = []  # the backends of claims whose answers were lost
        self._doubt_interval = DOUBT_INTERVAL
        self._look_everywhere_at = -math.inf
        self._again_at: dict[str, float] = {}  # queues that a limit left short, and when to ask again
        self._paused_jobs: list[ClaimedJob] = []
        self._unreadable: list[Unreadable] = []
        self._pausing: set[str] = set()  # queues of which nothing more is to start, until what is ready is handed back
        self.trouble = Trouble("claims", vital=True)
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

    def freed(self, queues: Iterable[str]) -> None:
        """Say that jobs of these queues have ended, or that their limits are others: what a limit held back may go on."""
        for name in self._again_at.keys() & set(queues) if self._again_at else ():
            del self._again_at[name]
            self.wake({name: math.inf})

    def pause(self, name: str) -> None:
        """Say that a queue was paused: what was claimed of it and has not started is handed back."""
        queue = self._queues.get(name)
        if queue is not None:
            self._pausing.add(name)
            self._paused_jobs += queue.ready.clear()
            self._hint.set()

    def look_again(self) -> None:
        """Say that a worker may soon have nothing to do."""
        self._hint.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Claim until cancelled. What a claim brought is always in a local queue before the cancellation is seen."""
        self._running = True
        task_status.started()
        try:
            await self._run()
        finally:
            self._running = False

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
        """Look for what nobody told of."""
        if trio.current_time() >= self._look_everywhere_at:
            self.wake_all()
        else:
            self.wake(dict.fromkeys(self._queues, math.inf))  # from the floor on

    async def _act(self) -> bool:
        """Do what there is to do; tell whether that was a claim."""
        async with self._one_claim:
            # No claim is under way: from now on the database gives none of a queue that it was told to pause.
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

    def _decide(self) -> dict[str, Want]:
        """What to claim of each queue now; empty when there is nothing to do, or no lease to do it under."""
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
        """Take what one claim brings, by a call of what this yields: it is ready for the workers afterwards."""
        node_id = self._lease.node.id
        asked_at = trio.current_time()
        with ExitStack() as claiming:
            brought = {name: claiming.enter_context(self._queues[name].claiming(want)) for name, want in wants.items()}

            def bring(claimed: Claimed) -> None:
                jobs: Sequence[ClaimedJob] = claimed
                if [job for job in jobs if job.options is not None]:
                    jobs = self._in_time(jobs, asked_at)
                if node_id != self._lease.node.id:
                    return  # the lease was lost meanwhile, and the jobs with it
                self._outcomes.held.update([(job.id, job.claims) for job in jobs])
                if claimed.unreadable:
                    self._outcomes.held.update([(job.id, job.claims) for job, _ in claimed.unreadable])
                    self._unreadable += claimed.unreadable
                    self.wake(dict.fromkeys(wants, -math.inf))  # they took the place of others in this claim
                for name in self._again_at.keys() & wants.keys() if self._again_at else ():
                    del self._again_at[name]
                for name, seconds in claimed.again.items():
                    self._again_at[name] = trio.current_time() + seconds
                if claimed.dead:
                    # They took the place of others in this claim: there may be more.
                    self.wake(dict.fromkeys([job.queue for job in claimed.dead], -math.inf))
                    self._on_expired(claimed.dead)
                for job in self._without_paused(jobs) if self._pausing else jobs:
                    brought[job.queue].append(job)
                    if job.attempt == 1:
                        self._metrics.of(job.queue, job.kind).wait.observe(max(0.0, job.waited))

            yield bring

    def _in_time(self, jobs: Sequence[ClaimedJob], asked_at: float) -> list[ClaimedJob]:
        """Leave out those that expired before they were claimed, and say of the others until when they may be started."""
        late = [job for job in jobs if job.expired]
        if late:
            # They took the place of others in this claim: there may be more.
            self.wake({job.queue: job.rank for job in late})
            self._on_expired([Expired(job.id, job.queue, job.kind, job.attempt - 1) for job in late])
        for job in jobs:
            if job.options is not None:
                seconds = None if job.options.expires_at is None else job.options.expires_in
                job.options.start_by = None if seconds is None else asked_at + seconds
        return [job for job in jobs if not job.expired]

    def _without_paused(self, jobs: Sequence[ClaimedJob]) -> list[ClaimedJob]:
        """Keep back what a claim brought that began before its queue was paused."""
        self._paused_jobs += [job for job in jobs if job.queue in self._pausing]
        self._hint.set()
        return [job for job in jobs if job.queue not in self._pausing]

    @contextmanager
    def along(self, due: Mapping[str, int]) -> Iterator[Along | None]:
        """Claim in the transaction of a submission: from a submit to its handler there is one commit then, and not two.

        Only where it is sure to serve: workers of this node have nothing else to do, and no other claim is under way.

        Args:
            due: how many jobs the submission brings, by queue.
        """
        wants = {
            name: want for name, jobs in due.items() if name in self._queues and (want := self._queues[name].wanted_along(jobs))
        }
        may_claim = self._running and self._lease.valid and self.trouble.reason is None and not self._one_claim.locked()
        if not (wants and may_claim):
            yield None
            return
        self._one_claim.acquire_nowait()
        try:
            with self._claiming(wants) as bring:
                yield Along(Claim(self._lease.node.id, wants, self._default_retries), bring)
        finally:
            self._one_claim.release()

    def audit(self, lost: ConnectionLost) -> None:
        """Compare soon what the database says that this node holds with what it knows of: the answer to a claim was lost.

        Claims go on meanwhile. What the lost one brought is handed back once its transaction is over.
        """
        self._lost.append(lost.backend)
        self._doubt_interval = DOUBT_INTERVAL / 2
        self._audit_at = -math.inf
        self._hint.set()

    async def _audit(self) -> None:
        """Hand back what the database says this node holds and nobody here knows of."""
        self._doubt_interval = min(AUDIT_INTERVAL, self._doubt_interval * 2)
        self._audit_at = trio.current_time() + (self._doubt_interval if self._lost else AUDIT_INTERVAL)
        if not self._lease.valid:
            return
        node_id = self._lease.node.id
        lost = tuple(self._lost)
        known = frozenset(self._outcomes.held)  # before the question: what ends during it is not forgotten, and nothing is claimed
        try:
            forgotten = await self._store.held(node_id, lost=lost) - known
        except DatabaseUnavailable as error:
            if not lost:
                raise
            log.debug("a lost claim is not settled yet", error=str(error))
            return
        if lost:
            del self._lost[: len(lost)]
            self._audit_at = trio.current_time() + AUDIT_INTERVAL
        if forgotten:
            outcomes = [Outcome(id=job_id, claims=claims, outcome="released") for job_id, claims in sorted(forgotten)]
            await self._store.finish(node_id, outcomes)
            log.warning("forgotten claims handed back", jobs=len(forgotten))
            self.wake_all()

    async def _bury(self, unreadable: Unreadable) -> None:
        """Let a job end that this node cannot read: no other node could, and it would be claimed again and again."""
        job = unreadable.job
        reason = documents.storable(f"the job cannot be read: {unreadable.reason}", MAX_REASON)
        log.error("job died", **job.log_context, reason=reason)
        error = AttemptError(attempt=job.attempt, error=reason, duration=0.0)
        outcome = Outcome(id=job.id, claims=job.claims, outcome="dead", reason=reason, error=error)
        await self._outcomes.put(job, outcome, self._lease.node.id)
