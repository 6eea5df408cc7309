"""Record the history: each node adds its counts to slots in the database, and reads the counts of all nodes from them.

PostgreSQL's clock decides when a slot ends. Each write returns the seconds until then.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from operator import sub
from typing import Any

import trio

from jobqueue.concurrency.routine import Routine
from jobqueue.concurrency.trouble import Trouble
from jobqueue.durations import percentile
from jobqueue.errors import RefusedData
from jobqueue.metrics import Metrics, Totals
from jobqueue.storage.roles.inspect import HISTORY, HistorySlot, InspectStore
from jobqueue.storage.roles.upkeep import UpkeepStore

EARLIEST, LATEST = 0.1, 1.0
"""Minimum and maximum delay of a write after the end of a slot, in seconds.

The delay is random, so that the nodes do not all write at once. It ends before `HISTORY_SETTLE`.
"""

RETRY_INTERVAL = 10.0
"""Maximum delay before a failed write is retried, in seconds."""

SAMPLE_SHARE = 100
"""If a sample of the depths fails after *t*, this node waits this many times *t* before it takes another sample.

After a successful sample, PostgreSQL decides which node takes the next sample, and when.
"""

NOTHING = Totals(0, 0, 0, 0)

PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class HistoryWriter:
    """Writes this node's counts to the history.

    Args:
        steady: whether to write empty slots too. Nodes do this, so a gap in the history shows that no node ran.
    """

    def __init__(self, store: UpkeepStore, metrics: Metrics, *, steady: bool = True) -> None:
        self._store = store
        self._metrics = metrics
        self._steady = steady
        self._written = metrics.totals()
        self._sample = False
        self._sample_after = -math.inf
        self.trouble = Trouble("history", longest_pause=RETRY_INTERVAL)
        self._routine = Routine(self._write, self.trouble)
        self.run = self._routine.run

    async def flush(self) -> None:
        """Write the counts since the last write, if there are any."""
        if self._since(self._metrics.totals()) != NOTHING:
            with self.trouble.contained():
                await self._write()

    async def _write(self) -> float:
        """Write; return the seconds until the next write. Counts that could not be written are part of the next write."""
        totals = self._metrics.totals()
        new = self._since(totals)
        if new == NOTHING and not self._steady:
            return RETRY_INTERVAL
        began = trio.current_time()
        try:
            recorded = await self._store.record(new, sample=self._sample and began >= self._sample_after)
        except RefusedData:
            self._written = totals  # a count exceeds the range of its column: drop these counts
            raise
        except Exception:
            if self._sample:  # counting the depths may have caused the timeout
                self._sample_after = began + SAMPLE_SHARE * (trio.current_time() - began)
            raise
        self._written = totals
        self._sample = recorded.sample
        return max(0.0, recorded.next_in) + random.uniform(EARLIEST, LATEST)

    def _since(self, totals: Totals) -> Totals:
        """Return these totals minus the totals already written."""
        then = self._written
        return Totals(
            submitted=totals.submitted - then.submitted,
            completed=totals.completed - then.completed,
            failed=totals.failed - then.failed,
            dead=totals.dead - then.dead,
            waits=_without_end(list(map(sub, totals.waits, then.waits))),
            runs=_without_end(list(map(sub, totals.runs, then.runs))),
        )


def step_of(seconds: int) -> int:
    """Return the shortest slot length, in seconds, whose slots are kept for at least `seconds`."""
    return next(step for step, kept in HISTORY.items() if seconds <= kept)


async def look_back(store: InspectStore, seconds: int) -> dict[str, Any]:
    """Return the history of all nodes over the last `seconds`, up to a day.

    Raises:
        DatabaseUnavailable: PostgreSQL is unavailable.
    """
    step = step_of(seconds)
    return {"step": step, "points": [point(step, slot) for slot in await store.history(step, seconds=seconds)]}


def point(step: int, slot: HistorySlot) -> dict[str, Any]:
    """Convert a slot to its JSON form: events per second, and percentiles in seconds."""
    counts = slot.counts
    return {
        "at": slot.at,
        "submitted": counts.submitted / step,
        "completed": counts.completed / step,
        "failed": counts.failed / step,
        "dead": counts.dead / step,
        "wait": _percentiles(counts.waits),
        "run": _percentiles(counts.runs),
        "depth": slot.depth,
    }


def _percentiles(counts: Sequence[int]) -> dict[str, float] | None:
    """Return the percentiles with three significant digits, because they are not more precise; None without counts."""
    told = {name: percentile(counts, share) for name, share in PERCENTILES.items()}
    return {name: float(f"{seconds:.3g}") for name, seconds in told.items() if seconds is not None} or None


def _without_end(counts: list[int]) -> tuple[int, ...]:
    """Remove the empty buckets at the end."""
    while counts and not counts[-1]:
        counts.pop()
    return tuple(counts)
