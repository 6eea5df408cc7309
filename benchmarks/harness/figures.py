"""Statistics of samples."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

T = TypeVar("T")


class Spread(msgspec.Struct, frozen=True):
    """The median, minimum and maximum of samples."""

    median: float
    low: float
    high: float
    samples: list[float]

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Summarize at least one sample."""
        return cls(statistics.median(samples), min(samples), max(samples), list(samples))


def percentile(samples: Sequence[float], share: float) -> float:
    """Return a percentile by the nearest-rank method.

    Args:
        samples: at least one sample.
        share: the percentile as a share, greater than 0 and at most 1.
    """
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


def interleave(cases: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Call each case `repeats` times, in the order A B A B, so that other load on the machine affects all cases equally."""
    results: dict[str, list[T]] = {name: [] for name in cases}
    for number in range(repeats):
        for name, case in cases.items():
            print(f"{name} ({number + 1}/{repeats})", file=sys.stderr)
            results[name].append(case())
    return results
