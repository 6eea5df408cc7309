"""Wait for a condition that no event announces, such as the state of a process, a thread, or PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Callable

import trio


def wait_for(condition: Callable[[], object], what: str = "the condition holds", seconds: float = 120) -> None:
    """Block until the condition is true. If it is not true within `seconds`, fail with a message that contains `what`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


async def until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait until the condition is true, while the loop runs. Fail if it is not true within `seconds`."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - no event announces it
            await trio.sleep(0.01)
