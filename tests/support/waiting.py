"""Wait for a condition that no event announces, such as the state of a process, a thread, or PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Callable

import trio


def wait_for(condition: Callable[[], object], what: str = "the condition holds", seconds: float = 120) -> float:
    """Block until the condition is true, and return how long that took.

    If it is not true within `seconds`, fail with a message that contains `what`.
    """
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - began


async def until(condition: Callable[[], object], what: str = "the condition holds", seconds: float = 120) -> None:
    """Wait until the condition is true, while the loop runs. Fail like `wait_for`."""
    with trio.move_on_after(seconds) as scope:
        while not condition():  # noqa: ASYNC110 - no event announces it
            await trio.sleep(0.01)
    assert not scope.cancelled_caught, f"not within {seconds} s: {what}"
