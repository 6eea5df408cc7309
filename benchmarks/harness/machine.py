"""Describe the machine and the PostgreSQL server that produced the figures."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psycopg

SETTINGS = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size", "wal_level")
"""PostgreSQL's settings that determine the cost of a durable commit."""


class Machine(msgspec.Struct, frozen=True):
    """A machine, and the server on it.

    Attributes:
        settings: the values of `SETTINGS`.
        load: the load average of the last minute before the benchmark, which shows other work of the machine.
    """

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    python: str
    postgresql: str
    settings: dict[str, str]
    load: float

    @classmethod
    def with_server(cls, connection: psycopg.Connection[Any]) -> Machine:
        """Describe this machine and the server of the connection."""
        settings = {name: connection.execute("SELECT current_setting(%s)", [name]).fetchall()[0][0] for name in SETTINGS}
        [[version]] = connection.execute("SHOW server_version").fetchall()
        return cls(
            cpu=_cpu(),
            cores=len(os.sched_getaffinity(0)),
            memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
            kernel=f"{platform.system()} {platform.release()}",
            python=f"{platform.python_implementation()} {platform.python_version()}",
            postgresql=version,
            settings=settings,
            load=round(os.getloadavg()[0], 2),
        )

    def __str__(self) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return (
            f"{self.cores} cores of {self.cpu}, {self.memory_gib:g} GiB, {self.kernel}, {self.python}\n"
            f"PostgreSQL {self.postgresql}: {settings}\nload average at the start: {self.load:g}"
        )


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
