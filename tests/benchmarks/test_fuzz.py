"""A short fuzz run. ``python -m benchmarks.fuzz`` is the long one."""

from __future__ import annotations

import pytest

from benchmarks.fuzz.cases import ROUTES, draw_cases
from benchmarks.fuzz.client import statuses
from tests.support.command_line import run_module

pytestmark = pytest.mark.slow

LIVE_IDS = ("0190a0b0-0000-7000-8000-000000000002",)


def test_hostile_requests_do_not_damage_the_service() -> None:
    ended = run_module("benchmarks.fuzz", "--requests", "500", "--seed", "7", timeout=900)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "500 cases of seed 7" in ended.stdout
    for answered in ("200", "201", "400", "404", "405", "415"):
        assert answered in ended.stdout.splitlines()[2]


def test_the_same_seed_draws_the_same_cases_over_all_routes() -> None:
    drawn = draw_cases(300, 1, LIVE_IDS)
    assert drawn == draw_cases(300, 1, LIVE_IDS)
    assert drawn != draw_cases(300, 2, LIVE_IDS)
    sent = b"\n".join(case.pieces[0] for case in drawn if case.kind == "requests")
    for topic in {route.path.split("/")[1] for route in ROUTES}:
        assert f" /{topic}".encode() in sent


@pytest.mark.parametrize(
    ("received", "found"),
    [
        (b"", []),
        (b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 201 \r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 500 \r\n\r\n", ["201", "500"]),
        (b"\0\0\0\4\0\0\0\0\0" + b"\0\0\1\1\4\0\0\0\1\x88" + b"\0\0\1\1\4\0\0\0\3\x8e", ["200", "500"]),
        (b"\0\0\0\4\0", []),
    ],
)
def test_statuses_are_found_in_either_http(received: bytes, found: list[str]) -> None:
    assert statuses(received) == found
