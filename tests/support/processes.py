"""Read the resource usage of processes from ``/proc`` (Linux); see proc(5)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

TICK = 1 / os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20


class Usage(msgspec.Struct, frozen=True):
    """Resource usage of processes since their start. Subtract two values to get the usage of a span.

    Attributes:
        cpu: user and system seconds of all threads.
        wakeups: the number of voluntary context switches. Each is one wait of a thread.
        rss: resident memory in bytes; the difference of two values is the growth.
    """

    cpu: float = 0.0
    wakeups: int = 0
    rss: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.cpu + other.cpu, self.wakeups + other.wakeups, self.rss + other.rss)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.cpu - other.cpu, self.wakeups - other.wakeups, self.rss - other.rss)

    @property
    def rss_mib(self) -> float:
        return self.rss / MIB


def usage_of(pid: int, *, ended_children: bool = False) -> Usage:
    """Read the usage of a process. All values are 0 if it has ended.

    Args:
        pid: the process.
        ended_children: whether to add the CPU time of its ended children.
    """
    with suppress(OSError):
        fields = _stat(pid)
        ticks = sum(int(field) for field in fields[11 : 15 if ended_children else 13])
        return Usage(ticks * TICK, sum(_wakeups(pid)), int(fields[21]) * PAGE)
    return Usage()


def usage_of_tree(pid: int) -> Usage:
    """Read the usage of a process and its children, including ended children."""
    return sum((usage_of(child) for child in children_of(pid)), usage_of(pid, ended_children=True))


def children_of(pid: int) -> list[int]:
    """Return the child processes of a process."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(_stat(int(directory.name))[1]) == pid:
                found.append(int(directory.name))
    return found


def parent_of(pid: int) -> int:
    """Return the parent of a process.

    Raises:
        OSError: the process does not exist on this machine.
    """
    return int(_stat(pid)[1])


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third (the state) on. The second field, the name, may contain spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _wakeups(pid: int) -> Iterator[int]:
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with suppress(OSError):
            for line in status.read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    yield int(line.split()[1])
