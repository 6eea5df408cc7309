"""Run ``jobqueue serve`` in a child process."""

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
from tests.support.processes import Usage, children_of, usage_of

ROOT = Path(__file__).parent.parent.parent

START_TIMEOUT = 60.0
"""Maximum time until a node serves, in seconds."""

STOP_TIMEOUT = 40.0
"""Maximum time from SIGTERM to the end of a node, in seconds. A node guarantees 25 s."""

SAID = 4_000
"""Maximum length of a node's log in an error message, in characters."""


class Node:
    """A node that serves during the block. SIGTERM ends it.

    Args:
        database: the node's database. None if the node starts the embedded PostgreSQL itself, according to `options`.
        handlers: the module argument of ``jobqueue serve``.
        queues: the maximum number of jobs that run at once, by queue.
        options: further command line options, by name without the dashes.

    Attributes:
        start_seconds: seconds from exec to the line that reports the URL.
        url: the URL of its HTTP server.
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
            raise RuntimeError(f"the node ended with exit code {code}:\n{self.log[-SAID:]}")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """The node's log so far: warnings and errors, unless `options` contains another log level."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def usage(self) -> Usage:
        """Return the resource usage of its process and the processes of its CPU-bound handlers."""
        return sum((usage_of(child) for child in children_of(self.pid)), usage_of(self.pid, ended_children=True))

    def _wait_for_banner(self) -> None:
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), True)
        deadline = time.monotonic() + START_TIMEOUT
        for line in self._process.stdout:
            if line.startswith("  serving"):
                self.url = line.split()[1].rstrip(",")
            if line.startswith("  try"):  # the banner ends with this line
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
