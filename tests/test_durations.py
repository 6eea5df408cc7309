"""Histograms of durations, and their percentiles."""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue.durations import BOUNDS, LARGEST_RATIO, Durations, percentile

pytestmark = pytest.mark.slow

durations = st.lists(st.floats(0, 1_000_000), min_size=1, max_size=200)
shares = st.floats(0.01, 1)


def counted(taken: list[float]) -> list[int]:
    histogram = Durations()
    for seconds in taken:
        histogram.observe(seconds)
    return histogram.counts


def nearest_rank(taken: list[float], share: float) -> float:
    return sorted(taken)[max(0, math.ceil(share * len(taken)) - 1)]


def test_the_bounds_are_ten_per_decade_and_limit_the_width_of_buckets() -> None:
    assert list(BOUNDS) == sorted(set(BOUNDS))
    assert len(BOUNDS) == 92
    ratios = [high / low for low, high in pairwise(BOUNDS)]
    assert max(ratios) == pytest.approx(LARGEST_RATIO)


@given(durations)
def test_each_duration_is_counted_once_in_the_bucket_whose_bound_it_does_not_exceed(taken: list[float]) -> None:
    counts = counted(taken)
    assert sum(counts) == len(taken)
    for place, bound in enumerate(BOUNDS):
        assert sum(counts[: place + 1]) == len([seconds for seconds in taken if seconds <= bound])


@given(durations, shares)
def test_a_percentile_is_in_the_bucket_of_its_duration(taken: list[float], share: float) -> None:
    told = percentile(counted(taken), share)
    assert told is not None
    place = bisect_left(BOUNDS, nearest_rank(taken, share))
    if place == len(BOUNDS):
        assert told == BOUNDS[-1]
        return
    low = 0.0 if place == 0 else BOUNDS[place - 1]
    assert low * (1 - 1e-9) <= told <= BOUNDS[place] * (1 + 1e-9)


@given(st.lists(st.floats(BOUNDS[0], BOUNDS[-1], exclude_min=True), min_size=1, max_size=200), shares)
def test_a_percentile_is_off_by_at_most_one_bucket(taken: list[float], share: float) -> None:
    told, true = percentile(counted(taken), share), nearest_rank(taken, share)
    assert told is not None
    assert 1 / LARGEST_RATIO - 1e-9 <= told / true <= LARGEST_RATIO + 1e-9


@given(durations, shares, shares)
def test_percentiles_rise_with_the_share(taken: list[float], one: float, other: float) -> None:
    counts = counted(taken)
    low, high = (percentile(counts, share) for share in sorted((one, other)))
    assert low is not None
    assert high is not None
    assert low <= high * (1 + 1e-9)


@given(durations, shares)
def test_empty_buckets_at_the_end_may_be_omitted(taken: list[float], share: float) -> None:
    counts = counted(taken)
    last = max(place for place, count in enumerate(counts) if count)
    assert percentile(counts[: last + 1], share) == percentile(counts, share)


def test_an_empty_histogram_has_no_percentiles() -> None:
    assert percentile([], 0.5) is None
    assert percentile(counted([]), 0.99) is None


def test_durations_that_fill_a_bucket_are_spread_over_it() -> None:
    counts = counted([1.1] * 100)
    assert percentile(counts, 0.5) == pytest.approx(math.sqrt(1.2))
    assert percentile(counts, 1) == pytest.approx(1.2)


def test_additional_buckets_of_another_version_are_beyond_the_last_bound() -> None:
    assert percentile([0] * (len(BOUNDS) + 5) + [3], 0.5) == BOUNDS[-1]
