"""Virtual time for one Trio run: it stands still while code runs, jumps over waiting, and flows like real time where it must.

`trio.testing.MockClock` jumps whenever all tasks are blocked, also while a thread works or a reply is on its way. Here whoever
keeps the time (`Queue`) decides at each such moment.
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
    """A Trio clock that flows like real time until somebody makes it stand still.

    `in_virtual_time` runs a test on one. With pytest-trio, a fixture that returns one does the same for the tests that ask for it.
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
        """Let time pass as it does outside."""
        self._time = self.current_time()
        self._flows_since = time.monotonic()

    def stand_still(self) -> None:
        """Let no time pass."""
        self._time = self.current_time()
        self._flows_since = None

    def jump(self, seconds: float) -> None:
        """Let so many seconds have passed."""
        self._time += seconds


def in_virtual_time(test: Callable[P, Awaitable[T]]) -> Callable[P, T]:
    """Make a plain function of an async one, that runs it in a Trio run of its own, on a `Clock`.

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
