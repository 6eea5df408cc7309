"""The history: every node adds what it has counted to slots in the database, and every node can tell what all of them did.

When a slot is over is for the database to say, with each answer. A node's clock is not asked.
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
from jobqueue.storage.store import HISTORY, Slot, Store

EARLIEST, LATEST = 0.1, 1.0
"""Seconds after the end of a slot between which a node writes: the nodes do not all come at once, nor after `HISTORY_SETTLE`."""

RETRY_INTERVAL = 10.0
"""The most seconds until what could not be written is tried again."""

SAMPLE_SHARE = 100
"""A try to count the depths that failed is not repeated by this node for so many times as long as it took; of those that succeed
the database keeps account."""

NOTHING = Totals(0, 0, 0, 0)

PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class History:
    """What this node has counted, on its way into the history.

    Args:
        steady: whether slots in which nothing happened are written too, as those of a node are: a gap means that none ran.
    """

    def __init__(self, store: Store, metrics: Metrics, *, steady: bool = True) -> None:
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
        """Write what was counted since the last time, if anything was."""
        if self._since(self._metrics.totals()) != NOTHING:
            with self.trouble.contained():
                await self._write()

    async def _write(self) -> float:
        """Write; return the seconds until it is to be done again. What is not written goes along with the next time."""
        totals = self._metrics.totals()
        new = self._since(totals)
        if new == NOTHING and not self._steady:
            return RETRY_INTERVAL
        began = trio.current_time()
        try:
            recorded = await self._store.record(new, sample=self._sample and began >= self._sample_after)
        except RefusedData:
            self._written = totals  # more than a column holds: the next slot is another one
            raise
        except Exception:
            if self._sample:  # counting may be what took too long
                self._sample_after = began + SAMPLE_SHARE * (trio.current_time() - began)
            raise
        self._written = totals
        self._sample = recorded.sample
        return max(0.0, recorded.next_in) + random.uniform(EARLIEST, LATEST)

    def _since(self, totals: Totals) -> Totals:
        """What these totals have more than those that are written."""
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
    """The length of the slots that are shown of so many seconds: the shortest that are kept so long."""
    return next(step for step, kept in HISTORY.items() if seconds <= kept)


async def look_back(store: Store, seconds: int) -> dict[str, Any]:
    """What all nodes did in so many seconds, up to a day, as people are shown it.

    Raises:
        DatabaseUnavailable: PostgreSQL is away.
    """
    step = step_of(seconds)
    return {"step": step, "points": [point(step, slot) for slot in await store.history(step, seconds=seconds)]}


def point(step: int, slot: Slot) -> dict[str, Any]:
    """One slot as people are shown it: what happened a second, and percentiles in seconds."""
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
    """Three digits of each: it is not known any better."""
    told = {name: percentile(counts, share) for name, share in PERCENTILES.items()}
    return {name: float(f"{seconds:.3g}") for name, seconds in told.items() if seconds is not None} or None


def _without_end(counts: list[int]) -> tuple[int, ...]:
    """Leave out the last buckets, where there is nothing in them."""
    while counts and not counts[-1]:
        counts.pop()
    return tuple(counts)
