"""One queue as this node works it: what is claimed and waits, what runs, and how far ahead to claim."""

from __future__ import annotations

import trio

from jobqueue.concurrency.aging_queue import AgingQueue
from jobqueue.engine.executor import Run
from jobqueue.job import ClaimedJob

AHEAD = 0.05
"""Seconds of work that a node claims ahead of its workers: fast jobs come by the hundred, slow ones are never hoarded."""

MAX_PREFETCH = 2_000
"""The most jobs of one queue that a node claims ahead of its workers."""

MAX_CLAIM = 500
"""The most jobs of one queue in one claim: it bounds the time of the transaction."""

CLAIM_BYTES = 8 << 20
"""About how many bytes of payload one claim may bring: it bounds the memory of a node whose jobs are large."""

_RATE_WINDOW = 0.02


class LocalQueue:
    """The state that the dispatcher and the workers of one queue share.

    Attributes:
        ready: jobs that are claimed and wait for a worker.
        runs: what the workers run now.
        more: whether the database may hold more of this queue: set by any hint, cleared by a claim that came back short.
    """

    def __init__(self, name: str, concurrency: int) -> None:
        self.name = name
        self.concurrency = concurrency
        self.ready: AgingQueue[ClaimedJob] = AgingQueue(concurrency + MAX_PREFETCH)
        self.runs: set[Run] = set()
        self.more = True
        self._prefetch = 0
        self._rate = 0.0
        self._finished = 0
        self._measured_at = trio.current_time()
        self._payload_bytes = 1.0

    def take(self, job: ClaimedJob) -> None:
        """Put a claimed job where the workers find it."""
        # Close to the largest of late: one large payload after many small ones is enough to be careful.
        self._payload_bytes = max(memoryview(job.payload).nbytes, self._payload_bytes * 0.99)
        self.ready.push(job.rank, job)

    def finished_one(self) -> None:
        """Count a job towards the rate that the prefetch follows."""
        self._finished += 1

    @property
    def hungry(self) -> bool:
        """Whether it is time to claim: half of the prefetch is used up, or a worker has nothing to do."""
        return self.more and len(self.ready) <= self._prefetch // 2 and self._room > 0

    @property
    def idle_capacity(self) -> int:
        """How many jobs could start at once."""
        return self.concurrency - len(self.runs) - len(self.ready)

    def wanted(self) -> int:
        """How many jobs to claim now: 0 unless it is time to."""
        self._measure()
        if not self.hungry:
            return 0
        return min(self._room, MAX_CLAIM, max(1, int(CLAIM_BYTES / self._payload_bytes)))

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
