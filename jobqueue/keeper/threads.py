"""Which threads of a process run, and which wait for the interpreter's lock. Linux only: elsewhere nothing is known.

A thread that waits for the lock wakes up every switch interval (0.5 ms in a node), finds it taken, and waits again: about 1,700
turns on a processor in a second, 15 microseconds each. A thread that computes has long turns, and one that sleeps has none.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import NamedTuple

LEAST_TURNS = 20
"""Turns a second from which on a thread may be waiting for the lock; on a busy machine there are fewer than 1,700."""

LONGEST_TURN = 100_000
"""Nanoseconds that such a turn takes on average, at most."""

BUSY_SHARE = 0.1
"""Share of a processor from which on a thread is busy."""

SHORTEST_LOOK = 0.2
"""Seconds that two samples must be apart to tell something."""


class Sample(NamedTuple):
    """When the threads were looked at, and how long each had run by then, in nanoseconds and in turns, by its native id."""

    at: float
    threads: dict[int, tuple[int, int]]


def sample(pid: int) -> Sample | None:
    """Look at the threads of a process; None where that is not possible."""
    threads = {}
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - pathlib is not loaded
            with contextlib.suppress(OSError):  # it has ended
                ran, _, turns = _read(f"/proc/{pid}/task/{thread}/schedstat").split()
                threads[int(thread)] = int(ran), int(turns)
    except OSError:
        return None
    return Sample(time.monotonic(), threads) if threads else None


class Activity:
    """What the threads of a process did between two samples."""

    def __init__(self, before: Sample, after: Sample) -> None:
        self._before = before
        self._after = after
        self._seconds = after.at - before.at

    @property
    def known(self) -> bool:
        """Whether the samples are far enough apart."""
        return self._seconds >= SHORTEST_LOOK

    def waits(self, thread: int) -> bool:
        """Whether a thread waits for the interpreter's lock."""
        ran, turns = self._of(thread)
        return turns >= LEAST_TURNS * self._seconds and ran <= LONGEST_TURN * turns

    def busy(self, thread: int) -> bool:
        """Whether a thread computes."""
        return self._of(thread)[0] >= BUSY_SHARE * self._seconds * 1e9

    def _of(self, thread: int) -> tuple[int, int]:
        ran, turns = self._after.threads.get(thread, (0, 0))
        ran_before, turns_before = self._before.threads.get(thread, (0, 0))
        return ran - ran_before, turns - turns_before


def stopped(pid: int) -> bool:
    """Tell whether a process is stopped, as by SIGSTOP or a debugger."""
    try:
        return _read(f"/proc/{pid}/stat").rpartition(") ")[2][:1] in ("T", "t")
    except OSError:
        return False


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - as above
        return file.read()
