"""Virtual time for one Trio run: the clock stops while code runs, jumps over waits, and runs like a real clock if necessary.

`trio.testing.MockClock` jumps whenever all tasks are blocked, even while a thread works or a reply from outside is pending. With
this clock, `Queue` decides whether to jump each time all tasks are blocked.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

import trio

P = ParamSpec("P")
T = TypeVar("T")


class Clock(trio.abc.Clock):
    """A Trio clock that runs like a real clock until `stand_still` stops it.

    `in_virtual_time` runs a test with such a clock. With pytest-trio, a fixture that returns such a clock has the same effect.
    """

    def __init__(self) -> None:
        self._time = 0.0
        self._flows_since: float | None = None

    def start_clock(self) -> None:
        self.flow()

    def current_time(self) -> float:
        return self._time if self._flows_since is None else self._time + time.monotonic() - self._flows_since

    def deadline_to_sleep_time(self, deadline: float) -> float:
        remaining = deadline - self.current_time()
        return remaining if self._flows_since is not None or remaining <= 0 else math.inf

    def flow(self) -> None:
        """Let time pass like real time."""
        self._time = self.current_time()
        self._flows_since = time.monotonic()

    def stand_still(self) -> None:
        """Stop the time."""
        self._time = self.current_time()
        self._flows_since = None

    def jump(self, seconds: float) -> None:
        """Advance the time by `seconds` at once."""
        self._time += seconds


def in_virtual_time(test: Callable[P, Awaitable[T]]) -> Callable[P, T]:
    """Decorate an async test so that a plain call runs it in a new Trio run with a `Clock`.

    ::

        @testing.in_virtual_time
        async def test_a_reminder_comes_after_a_day():
            async with testing.Queue(app) as queue: ...
    """

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        async def main() -> T:
            return await test(*args, **kwargs)

        result: Any = trio.run(main, clock=Clock())
        return result  # type: ignore[no-any-return]

    return run
