"""A real ``jobqueue serve`` in a process of its own, as a user would start it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.harness.database import Database
from benchmarks.harness.processes import Usage, children_of, usage_of

ROOT = Path(__file__).parent.parent.parent

START_TIMEOUT = 60.0
"""Seconds for a node to serve."""

STOP_TIMEOUT = 40.0
"""Seconds from SIGTERM to the end of a node; it promises 25."""

SAID = 4_000
"""Characters of a node's log in an error."""


class Node:
    """A node that serves while the context lasts, and is ended by SIGTERM.

    Args:
        database: what it works on; None for the embedded one that it starts itself, see `options`.
        handlers: the module, as ``jobqueue serve`` takes it.
        queues: how many jobs of each queue it runs at once.
        options: more of the command line, by name without the dashes.

    Attributes:
        start_seconds: from exec to the first line that says that it serves.
        url: where it serves HTTP.
    """

    def __init__(
        self,
        database: Database | None,
        handlers: str,
        *,
        queues: Mapping[str, int] | None = None,
        options: Mapping[str, object] | None = None,
    ) -> None:
        chosen = {
            "port": 0,
            "log-level": "warning",
            **({} if database is None else {"database-url": database.url}),
            **(options or {}),
        }
        arguments = [f"--{name}={value}" for name, value in chosen.items()]
        arguments += [f"--queue={name}={width}" for name, width in (queues or {}).items()]
        self._command = [sys.executable, "-m", "jobqueue", "serve", handlers, *arguments]
        self.start_seconds = 0.0
        self.url = ""

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile()
        environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
        started = time.monotonic()
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            self._wait_for_banner()
        except BaseException:
            self._kill()
            raise
        self.start_seconds = time.monotonic() - started
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_TIMEOUT)
        finally:
            self._kill()
        if code != 0 and error is None:
            raise RuntimeError(f"the node ended with {code}:\n{self.log[-SAID:]}")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has logged so far: warnings and worse, unless `options` say otherwise."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def usage(self) -> Usage:
        """What its process has used, with those of its CPU-bound handlers."""
        return sum((usage_of(child) for child in children_of(self.pid)), usage_of(self.pid, ended_children=True))

    def _wait_for_banner(self) -> None:
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), True)
        deadline = time.monotonic() + START_TIMEOUT
        for line in self._process.stdout:
            if line.startswith("  serving"):
                self.url = line.split()[1].rstrip(",")
            if line.startswith("  try"):  # the last line
                return
            if time.monotonic() > deadline:
                break
        raise RuntimeError(f"the node did not start:\n{self.log[-SAID:]}")

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
