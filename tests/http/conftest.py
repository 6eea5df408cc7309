"""Fixtures for the two lanes of the HTTP server."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from jobqueue.http.express import wire_format


@pytest.fixture
def without_lane(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Switch the express lane off or on."""
    form = wire_format._PLAIN
    return lambda without: monkeypatch.setattr(wire_format, "_PLAIN", re.compile(b"(?!)") if without else form)


@pytest.fixture(params=["express", "hypercorn"])
def lane(request: pytest.FixtureRequest, without_lane: Callable[[bool], None]) -> str:
    """The lane of plain submissions: the express lane, or hypercorn with the Quart routes."""
    without_lane(request.param == "hypercorn")
    return str(request.param)
