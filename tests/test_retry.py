import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobqueue.errors import HandlerError
from jobqueue.job import MAX_DELAY, MAX_RETRIES
from jobqueue.retry import DEFAULT_BACKOFF, Backoff, exponential_pause

pytestmark = pytest.mark.slow

attempts = st.integers(1, MAX_RETRIES + 1)


def lowest(low: float, high: float) -> float:  # noqa: ARG001 - a draw has both ends
    return low


def highest(low: float, high: float) -> float:  # noqa: ARG001 - a draw has both ends
    return high


def middle(low: float, high: float) -> float:
    return (low + high) / 2


@st.composite
def backoffs(draw: st.DrawFn) -> Backoff:
    base, cap = sorted(draw(st.tuples(*[st.floats(0, MAX_DELAY / 2)] * 2)))
    return Backoff(base=base, cap=cap, jitter=draw(st.floats(0, 1)))


def test_the_delay_doubles_with_each_attempt_up_to_the_cap() -> None:
    backoff = Backoff(base=1.5, cap=20)
    assert [backoff.delay(attempt, middle) for attempt in range(1, 8)] == [1.5, 3, 6, 12, 20, 20, 20]


def test_a_pause_with_jitter_is_from_half_of_the_pause_to_all_of_it() -> None:
    assert [exponential_pause(failures, 0.5, 3.0) for failures in (1, 2, 3, 4, 5_000)] == [0.5, 1, 2, 3, 3]
    drawn = [exponential_pause(3, 0.5, 3.0, jitter=True) for _ in range(100)]
    assert 1 <= min(drawn) < 1.5 < max(drawn) <= 2


def test_jitter_spreads_the_delay_by_its_share_both_ways() -> None:
    backoff = Backoff(base=10, jitter=0.2)
    assert (backoff.delay(1, lowest), backoff.delay(1, highest)) == (8, 12)
    assert Backoff(base=10, jitter=0).delay(1) == 10


def test_a_handler_that_says_nothing_gets_a_second_doubled_up_to_an_hour_give_or_take_a_fifth() -> None:
    assert DEFAULT_BACKOFF.delay(1, lowest) == 0.8
    assert DEFAULT_BACKOFF.delay(2, middle) == 2
    assert DEFAULT_BACKOFF.delay(MAX_RETRIES + 1, highest) == pytest.approx(3600 * 1.2)


def test_delays_of_jobs_that_failed_together_differ() -> None:
    assert len({DEFAULT_BACKOFF.delay(5) for _ in range(100)}) > 90


@given(backoffs(), attempts)
def test_every_delay_is_one_that_the_database_takes(backoff: Backoff, attempt: int) -> None:
    assert 0 <= backoff.delay(attempt, lowest) <= backoff.delay(attempt) <= backoff.delay(attempt, highest) <= MAX_DELAY


@given(backoffs(), attempts)
def test_without_jitter_no_delay_is_shorter_than_the_one_before(backoff: Backoff, attempt: int) -> None:
    assert backoff.base <= backoff.delay(attempt, middle) <= backoff.delay(attempt + 1, middle) <= backoff.cap


@pytest.mark.parametrize(
    "values",
    [
        {"base": 0, "cap": 0},
        {"base": MAX_DELAY / 2, "cap": MAX_DELAY / 2},
        {"jitter": 0},
        {"jitter": 1},
    ],
    ids=str,
)
def test_the_ends_of_the_ranges_are_allowed(values: dict[str, float]) -> None:
    assert Backoff(**values).delay(1) >= 0


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"base": -0.001}, "base=-0.001"),
        ({"base": 5, "cap": 4.999}, "cap=4.999"),
        ({"cap": MAX_DELAY / 2 + 1}, f"{MAX_DELAY / 2:.0f} s"),
        ({"base": math.nan}, "base=nan"),
        ({"cap": math.inf}, "cap=inf"),
        ({"jitter": -0.001}, "jitter must be from 0 to 1, got -0.001"),
        ({"jitter": 1.001}, "jitter must be from 0 to 1, got 1.001"),
        ({"jitter": math.nan}, "jitter must be from 0 to 1, got nan"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value),
)
def test_a_value_out_of_its_range_is_refused_and_named(values: dict[str, float], reason: str) -> None:
    with pytest.raises(HandlerError, match=reason):
        Backoff(**values)
