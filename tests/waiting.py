"""Wait until something is true that sends no event: what a process, a thread, or PostgreSQL does."""

from __future__ import annotations

import time
from collections.abc import Callable

import trio


def wait_for(condition: Callable[[], object], what: str = "the condition holds", seconds: float = 60) -> None:
    """Block until the condition is true; fail after so many seconds, and name what did not happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


async def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until the condition is true, and let the loop run meanwhile; fail after so many seconds."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(0.01)
