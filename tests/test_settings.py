import math
import re
from typing import Any

import pytest

from jobqueue.errors import SettingsError
from jobqueue.fields import must_be
from jobqueue.job import MAX_NAME_LENGTH, PathName
from jobqueue.settings import MAX_CONCURRENCY, MAX_PROCESSES, MAX_QUEUES, Settings

TEN_YEARS = 10 * 365 * 86_400

BOUNDS = [
    ("port", "port (--port)", 0, 65_535, 1),
    ("processes", "number of processes (--processes)", 1, MAX_PROCESSES, 1),
    ("poll_interval", "poll interval in seconds (--poll-interval)", 0.05, 60, 0.001),
    ("visibility_timeout", "visibility timeout in seconds (--visibility-timeout)", 2, 86_400, 0.001),
    ("stall_limit", "stall limit in seconds (--stall-limit)", 5, 86_400, 0.001),
    ("grace_period", "grace period in seconds (--grace-period)", 0, 86_400, 0.001),
    ("keep_finished", "time in seconds to keep succeeded jobs (--keep-finished)", 0, TEN_YEARS, 0.001),
    ("keep_cancelled", "time in seconds to keep cancelled jobs (--keep-cancelled)", 0, TEN_YEARS, 0.001),
    ("keep_dead", "time in seconds to keep dead letters (--keep-dead)", 0, TEN_YEARS, 0.001),
    ("idempotency_ttl", "lifetime of idempotency keys in seconds (--idempotency-ttl)", 1, TEN_YEARS, 0.001),
]
"""A setting, its name in messages, its least and largest value, and the step to a value outside."""


def queues(number: int) -> dict[str, int]:
    return {f"queue {place}": 1 for place in range(number)}


def test_the_defaults_work() -> None:
    settings = Settings()
    assert settings.database_url is None
    assert settings.host == "127.0.0.1"
    assert settings.tokens == ()
    assert settings.worked_queues == {"default": 16}


def test_the_default_queues_are_not_shared() -> None:
    assert Settings().queues is not Settings().queues


@pytest.mark.parametrize(("setting", "name", "least", "most", "step"), BOUNDS, ids=[setting for setting, *_ in BOUNDS])
def test_a_number_is_taken_within_its_bounds_and_refused_outside(
    setting: str, name: str, least: float, most: float, step: float
) -> None:
    for value in (least, most):
        assert getattr(Settings(**{setting: value}), setting) == value
    for value in (least - step, most + step, -math.inf, math.inf, math.nan):
        with pytest.raises(SettingsError, match=f"^the {re.escape(name)} must be from {least} to {most}, got {value}$"):
            Settings(**{setting: value})


@pytest.mark.parametrize(
    "allowed",
    [
        {},
        {"a": 0},
        {"a": MAX_CONCURRENCY},
        {"x" * MAX_NAME_LENGTH: 1},
        queues(MAX_QUEUES),
    ],
    ids=["none", "nobody works it", "widest", "longest name", "most queues"],
)
def test_queues_within_their_bounds(allowed: dict[str, int]) -> None:
    assert Settings(queues=allowed).queues == allowed


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        ({"a": 1, "mail": -1}, f"the concurrency of queue 'mail' (--queue) must be from 0 to {MAX_CONCURRENCY}, got -1"),
        ({"mail": 10_001}, f"the concurrency of queue 'mail' (--queue) must be from 0 to {MAX_CONCURRENCY}, got 10001"),
        ({"": 1}, f"the queue name '' (--queue) must be {must_be(PathName)}"),
        ({"x" * (MAX_NAME_LENGTH + 1): 1}, f"x' (--queue) must be {must_be(PathName)}"),
        ({"..": 1}, f"the queue name '..' (--queue) must be {must_be(PathName)}"),
        (queues(MAX_QUEUES + 1), f"the number of queues (--queue) must be from 0 to {MAX_QUEUES}, got {MAX_QUEUES + 1}"),
    ],
    ids=["negative width", "too wide", "no name", "name too long", "dots", "too many queues"],
)
def test_queues_outside_of_their_bounds_are_refused_and_named(refused: dict[str, int], reason: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(reason)):
        Settings(queues=refused)


def test_a_queue_without_concurrency_is_not_worked() -> None:
    assert Settings(queues={"mail": 8, "elsewhere": 0, "images": 1}).worked_queues == {"mail": 8, "images": 1}


def test_settings_do_not_change() -> None:
    settings: Any = Settings()
    with pytest.raises(AttributeError):
        settings.port = 1
