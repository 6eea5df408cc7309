"""How long things take: histograms over fixed bounds, and what can be read off them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

_PREFERRED = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)

BOUNDS = tuple(sorted({float(f"{number}e{decade}") for decade in range(-4, 5) for number in _PREFERRED} | {1_800.0, 100_000.0}))
"""The upper bounds of the buckets in seconds, from 0.1 ms to 28 h: ten to a decade, the preferred numbers R"10 of ISO 3, and half
an hour. What is longer has a bucket of its own."""

LARGEST_RATIO = 4 / 3
"""Of a bucket's upper bound to its lower one, at the most: so far may a percentile be from the duration that it stands for."""


class Durations:
    """A histogram for what happens to every job: counted on the loop's thread alone, so without a lock."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


def percentile(counts: Sequence[int], share: float) -> float | None:
    """Return about how long that share of the durations took at the most; None where there are none.

    It is in the bucket of the duration that nearest rank would name, and within it where the logarithms of its durations would have
    it if they were evenly spread; of durations beyond the last bound that bound is told.

    Args:
        counts: how many are in each bucket; those of the last buckets may be left out where there are none. Buckets that another
            version has beyond ours are beyond the last bound.
        share: over 0, at most 1.
    """
    rank = share * sum(counts)
    below = 0
    for place, count in enumerate(counts):
        if count and below + count >= rank:
            if place >= len(BOUNDS):
                return BOUNDS[-1]
            within = max(0.0, (rank - below) / count)
            high = BOUNDS[place]
            return float(high * within) if place == 0 else float(BOUNDS[place - 1] ** (1 - within) * high**within)
        below += count
    return None
