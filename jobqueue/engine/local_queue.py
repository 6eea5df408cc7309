"""One queue's state on this node: claimed jobs, running jobs, how many jobs to prefetch, and the floor of the next claim.

The *floor* is the best rank that a pending job can have, because claims have taken all jobs with a
better rank. Each event that adds a pending job (submission, promotion, recovery, release) sends a hint
with the job's rank, which can lower the floor.

The floor matters while an old transaction holds back vacuum. The dead rows of all claimed jobs then
precede the pending jobs in the index, and a claim without a floor scans all of these rows. If a hint
is lost, the floor hides its job, so some claims ignore the floor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from jobqueue.concurrency.aging_queue import AgingQueue
from jobqueue.engine.executor import Run
from jobqueue.job import ClaimedJob
from jobqueue.storage.roles.run import Want

AHEAD = 0.05
"""Seconds of work to prefetch. So a node prefetches hundreds of fast jobs, but only a few slow jobs."""

MAX_PREFETCH = 5_000
"""Maximum number of jobs of one queue to prefetch."""

MAX_CLAIM = 2_000
"""Maximum number of jobs of one queue in one claim. This limits the duration of the transaction."""

CLAIM_BYTES = 8 << 20
"""Approximate maximum size of all payloads in one claim, in bytes. This limits the node's memory."""

FLOOR_MARGIN = 0.001

_RATE_WINDOW = 0.02


class LocalQueue:
    """The state that the dispatcher and the workers of one queue share.

    Attributes:
        ready: claimed jobs that wait for a worker.
        runs: the jobs that run now.
    """

    def __init__(self, name: str, concurrency: int) -> None:
        self.name = name
        self.concurrency = concurrency
        self.ready: AgingQueue[ClaimedJob] = AgingQueue(concurrency + MAX_PREFETCH)
        self.runs: set[Run] = set()
        self._more = True  # whether more jobs may be pending: set by any hint, cleared by a claim that returned too few jobs
        self._floor = -math.inf  # the best rank that a pending job can have, as far as this node knows
        self._prefetch = 0
        self._rate = 0.0
        self._finished = 0
        self._measured_at = trio.current_time()
        self._payload_bytes = 1.0

    def hint(self, rank: float) -> None:
        """Record that a job of this rank or worse may be pending."""
        self._more = True
        self._floor = min(self._floor, rank)

    @contextmanager
    def claiming(self, want: Want) -> Iterator[list[ClaimedJob]]:
        """Yield a list for the jobs of one claim. On exit, its jobs are ready for the workers.

        Hints during the claim are kept, because the claim possibly did not see their jobs.
        """
        floor, self._floor = self._floor, math.inf
        self._more = False
        jobs: list[ClaimedJob] = []
        try:
            yield jobs
        except BaseException:
            self.hint(floor)
            raise
        if jobs and not self.ready.closed:  # a shutdown releases claimed jobs that have not started, see `service`
            self.ready.push_all([(job.rank, job) for job in jobs])
            # Track the largest recent payload, because one large payload among many small ones should limit claims.
            largest = max([memoryview(job.payload).nbytes for job in jobs])
            self._payload_bytes = max(largest, self._payload_bytes * 0.99 ** len(jobs))
            # All jobs with a better rank are claimed, but not all with an equal rank. The margin covers the rounding to a float.
            floor = max(floor, max([job.rank for job in jobs]) - FLOOR_MARGIN)
        self._floor = min(self._floor, floor)
        self._more = self._more or len(jobs) >= want.jobs

    def finished_one(self) -> None:
        """Count a finished job for the rate that determines the prefetch."""
        self._finished += 1

    @property
    def hungry(self) -> bool:
        """Whether to claim now: half of the prefetch is used up, or a worker is idle."""
        return self._more and len(self.ready) <= self._prefetch // 2 and self._room > 0

    @property
    def idle_capacity(self) -> int:
        """Number of jobs that could start at once."""
        return self.concurrency - len(self.runs) - len(self.ready)

    def wanted(self) -> Want | None:
        """Return how many jobs to claim now; None if it is too early."""
        self._measure()
        if not self.hungry:
            return None
        return self._want(min(self._room, self._most))

    def wanted_along(self, jobs: int) -> Want | None:
        """Return a claim for the transaction of a submission of `jobs` jobs; None if too few workers are idle.

        The claim asks for one additional job, to find out whether further jobs are pending.
        """
        return self._want(jobs + 1) if jobs < min(self.idle_capacity, self._most) else None

    def _want(self, jobs: int) -> Want:
        return Want(jobs, None if math.isinf(self._floor) else self._floor)

    @property
    def _most(self) -> int:
        """Maximum number of jobs in one claim, given the size of recent payloads."""
        return min(MAX_CLAIM, max(1, int(CLAIM_BYTES / self._payload_bytes)))

    @property
    def _room(self) -> int:
        return self.concurrency + self._prefetch - len(self.runs) - len(self.ready)

    def _measure(self) -> None:
        now = trio.current_time()
        elapsed = now - self._measured_at
        if elapsed < _RATE_WINDOW:
            return
        rate = self._finished / elapsed
        # The rate rises at once, so that workers do not run out of jobs in a burst. It falls by at
        # most half, so that one pause does not reset it.
        self._rate = max(rate, (self._rate + rate) / 2)
        self._prefetch = min(MAX_PREFETCH, int(self._rate * AHEAD))
        self._finished = 0
        self._measured_at = now
