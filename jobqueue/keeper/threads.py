"""Find out which threads of a process run, and which wait for the interpreter's lock. Linux only.

A thread that waits for the lock wakes up every switch interval (0.5 ms in a node), finds the lock
taken, and waits again. Such a thread gets about 1,700 turns on a processor per second, each 15
microseconds long. A computing thread has long turns, and a sleeping thread has none.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import NamedTuple

LEAST_TURNS = 20
"""Minimum turns per second of a thread that counts as waiting for the lock. A busy machine gives a thread fewer than 1,700."""

LONGEST_TURN = 100_000
"""Maximum average turn of a waiting thread, in nanoseconds."""

BUSY_SHARE = 0.1
"""Minimum processor share of a busy thread."""

SHORTEST_LOOK = 0.2
"""Minimum interval between two samples for a reliable result, in seconds."""


class Sample(NamedTuple):
    """A measurement of all threads: its time, and each thread's run time in nanoseconds and its turns, by native id."""

    at: float
    threads: dict[int, tuple[int, int]]


def sample(pid: int) -> Sample | None:
    """Measure the threads of a process; return None where that is not possible."""
    threads = {}
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - the keeper does not load pathlib
            with contextlib.suppress(OSError):  # the thread has ended
                ran, _, turns = _read(f"/proc/{pid}/task/{thread}/schedstat").split()
                threads[int(thread)] = int(ran), int(turns)
    except OSError:
        return None
    return Sample(time.monotonic(), threads) if threads else None


class Activity:
    """The activity of a process's threads between two samples."""

    def __init__(self, before: Sample, after: Sample) -> None:
        self._before = before
        self._after = after
        self._seconds = after.at - before.at

    @property
    def known(self) -> bool:
        """Whether the samples are far enough apart for a result."""
        return self._seconds >= SHORTEST_LOOK

    def waits(self, thread: int) -> bool:
        """Return whether a thread waits for the interpreter's lock."""
        ran, turns = self._of(thread)
        return turns >= LEAST_TURNS * self._seconds and ran <= LONGEST_TURN * turns

    def busy(self, thread: int) -> bool:
        """Return whether a thread computes."""
        return self._of(thread)[0] >= BUSY_SHARE * self._seconds * 1e9

    def _of(self, thread: int) -> tuple[int, int]:
        ran, turns = self._after.threads.get(thread, (0, 0))
        ran_before, turns_before = self._before.threads.get(thread, (0, 0))
        return ran - ran_before, turns - turns_before


def stopped(pid: int) -> bool:
    """Return whether a process is stopped, for example by SIGSTOP or a debugger."""
    try:
        return _read(f"/proc/{pid}/stat").rpartition(") ")[2][:1] in ("T", "t")
    except OSError:
        return False


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - as above
        return file.read()
