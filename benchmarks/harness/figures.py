"""Samples and what is said of them."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

T = TypeVar("T")


class Spread(msgspec.Struct, frozen=True):
    """The median of some samples, the least and the greatest."""

    median: float
    low: float
    high: float
    samples: list[float]

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Summarise at least one sample."""
        return cls(statistics.median(samples), min(samples), max(samples), list(samples))


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the sample that this share of them does not exceed (nearest rank).

    Args:
        samples: at least one.
        share: over 0, at most 1.
    """
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


def interleave(cases: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Call each case so many times in the order A B A B: what else the machine does meanwhile is done to all of them."""
    results: dict[str, list[T]] = {name: [] for name in cases}
    for number in range(repeats):
        for name, case in cases.items():
            print(f"{name} ({number + 1}/{repeats})", file=sys.stderr)
            results[name].append(case())
    return results
