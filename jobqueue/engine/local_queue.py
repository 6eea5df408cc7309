"""One queue as this node works it: what is claimed and waits, what runs, how far ahead to claim, and where to look.

Where to look is the *floor*: the best rank that may still be pending. Claims of this node have taken what is better, and every way
by which a better job can come (submit, promotion, recovery, hand-back) tells its rank. It matters while an old transaction holds
back vacuum: the rows of all claimed jobs then lie in front of the pending ones in the index, and a claim without a floor wades
through them. A hint may be lost, so now and then a claim looks everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from jobqueue.concurrency.aging_queue import AgingQueue
from jobqueue.engine.executor import Run
from jobqueue.job import ClaimedJob
from jobqueue.storage.store import Want

AHEAD = 0.05
"""Seconds of work that a node claims ahead of its workers: fast jobs come by the hundred, slow ones are never hoarded."""

MAX_PREFETCH = 5_000
"""The most jobs of one queue that a node claims ahead of its workers."""

MAX_CLAIM = 2_000
"""The most jobs of one queue in one claim: it bounds the time of the transaction."""

CLAIM_BYTES = 8 << 20
"""About how many bytes of payload one claim may bring: it bounds the memory of a node whose jobs are large."""

FLOOR_MARGIN = 0.001

_RATE_WINDOW = 0.02


class LocalQueue:
    """The state that the dispatcher and the workers of one queue share.

    Attributes:
        ready: jobs that are claimed and wait for a worker.
        runs: what the workers run now.
    """

    def __init__(self, name: str, concurrency: int) -> None:
        self.name = name
        self.concurrency = concurrency
        self.ready: AgingQueue[ClaimedJob] = AgingQueue(concurrency + MAX_PREFETCH)
        self.runs: set[Run] = set()
        self._more = True  # whether the database may hold more: set by any hint, cleared by a claim that came back short
        self._floor = -math.inf  # the best rank that may still be pending, as far as this node knows
        self._prefetch = 0
        self._rate = 0.0
        self._finished = 0
        self._measured_at = trio.current_time()
        self._payload_bytes = 1.0

    def hint(self, rank: float) -> None:
        """Learn that the database may hold a job of this rank, or worse."""
        self._more = True
        self._floor = min(self._floor, rank)

    @contextmanager
    def claiming(self, want: Want) -> Iterator[list[ClaimedJob]]:
        """Take what one claim brings: jobs that are put into the list are ready for the workers afterwards.

        Hints that come during the claim are kept: what they tell of may not have been visible to it.
        """
        floor, self._floor = self._floor, math.inf
        self._more = False
        jobs: list[ClaimedJob] = []
        try:
            yield jobs
        except BaseException:
            self.hint(floor)
            raise
        if jobs and not self.ready.closed:  # what a shutdown finds claimed and not started is handed back, see `service`
            self.ready.push_all([(job.rank, job) for job in jobs])
            # Close to the largest of late: one large payload after many small ones is enough to be careful.
            largest = max([memoryview(job.payload).nbytes for job in jobs])
            self._payload_bytes = max(largest, self._payload_bytes * 0.99 ** len(jobs))
            # Everything better is taken, but for ties; the margin covers what the rank lost on its way through a float.
            floor = max(floor, max([job.rank for job in jobs]) - FLOOR_MARGIN)
        self._floor = min(self._floor, floor)
        self._more = self._more or len(jobs) >= want.jobs

    def finished_one(self) -> None:
        """Count a job towards the rate that the prefetch follows."""
        self._finished += 1

    @property
    def hungry(self) -> bool:
        """Whether it is time to claim: half of the prefetch is used up, or a worker has nothing to do."""
        return self._more and len(self.ready) <= self._prefetch // 2 and self._room > 0

    @property
    def idle_capacity(self) -> int:
        """How many jobs could start at once."""
        return self.concurrency - len(self.runs) - len(self.ready)

    def wanted(self) -> Want | None:
        """What to claim now: None unless it is time to."""
        self._measure()
        if not self.hungry:
            return None
        return self._want(min(self._room, self._most))

    def wanted_along(self, jobs: int) -> Want | None:
        """What to claim along with a submission of so many jobs: one more, to know whether that was all. None: too few workers."""
        return self._want(jobs + 1) if jobs < min(self.idle_capacity, self._most) else None

    def _want(self, jobs: int) -> Want:
        return Want(jobs, None if math.isinf(self._floor) else self._floor)

    @property
    def _most(self) -> int:
        """The most jobs of one claim."""
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
        # Up at once, so that a burst is not starved; down by halves, so that one pause is not the end of it.
        self._rate = max(rate, (self._rate + rate) / 2)
        self._prefetch = min(MAX_PREFETCH, int(self._rate * AHEAD))
        self._finished = 0
        self._measured_at = now
