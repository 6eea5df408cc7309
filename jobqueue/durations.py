"""Histograms of durations with fixed buckets, and percentiles from them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

_PREFERRED = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)

BOUNDS = tuple(sorted({float(f"{number}e{decade}") for decade in range(-4, 5) for number in _PREFERRED} | {1_800.0, 100_000.0}))
"""The upper bounds of the buckets in seconds, from 0.1 ms to 28 h. Each decade has ten bounds, the preferred numbers R"10 of ISO 3.
Half an hour is an additional bound. Longer durations than the last bound have one more bucket."""

LARGEST_RATIO = 4 / 3
"""The maximum ratio of a bucket's upper bound to its lower bound: the maximum error of a percentile."""


class Durations:
    """A histogram that every job updates. It has no lock: only the event loop's thread updates it."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


def percentile(counts: Sequence[int], share: float) -> float | None:
    """Return an approximate percentile in seconds; None for an empty histogram.

    The result is in the bucket of the nearest-rank percentile. Within the bucket, it assumes that the logarithms of the durations
    are spread evenly. For durations beyond the last bound, it returns that bound.

    Args:
        counts: the number of durations in each bucket; empty buckets at the end may be missing. Additional buckets of another
            version count as beyond the last bound.
        share: the percentile as a share, above 0 and at most 1.
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
