"""Run a measured program (an adapter, or jobqueue's service) and read its standard output."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from benchmarks.harness import Usage
from benchmarks.peers.catalog import ADAPTERS
from tests.support.processes import usage_of_tree

SAID_CHARACTERS = 600
"""Maximum length of a failed program's output in an error message, in characters."""


class ProgramError(Exception):
    """A program failed, or did not do its work in time."""


class Program:
    """A process that runs during the block, and is killed with all its children at the end.

    Args:
        command: the command, which runs in the directory of the adapters.
        variables: additional environment variables.
    """

    def __init__(self, command: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
        self._command = command
        self._variables = variables or {}
        self._lines: queue.Queue[str | None] = queue.Queue()

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile()
        environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ADAPTERS,
            env={**environment, **self._variables},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # Kill the program without a shutdown, because a shutdown is not measured and can be slow.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(5)
        self._errors.close()

    def event(self, name: str, timeout: float) -> dict[str, Any]:
        """Wait for an event with this name, and ignore other events.

        Raises:
            ProgramError: the program ends before the event, or `timeout` seconds pass.
        """
        beginning = f'{{"event": "{name}"'
        said: dict[str, Any] = self._await(lambda line: json.loads(line) if line.startswith(beginning) else None, name, timeout)
        return said

    def serving_url(self, timeout: float) -> str:
        """Wait until jobqueue's service prints its URL, and return it.

        Raises:
            ProgramError: see `event`.
        """
        url: str = self._await(lambda line: line.split()[1] if line.startswith("  serving") else None, "serving", timeout)
        return url

    def usage(self) -> Usage:
        """Return its resource usage, including its children."""
        return usage_of_tree(self._process.pid)

    def _await(self, read: Callable[[str], Any], name: str, timeout: float) -> Any:
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._lines.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                raise ProgramError(f"no event {name!r} within {timeout:.0f} s: {self._said()}") from None
            if line is None:
                raise ProgramError(f"the program ended before the event {name!r}: {self._said()}")
            if (found := read(line)) is not None:
                return found

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout:
            for line in self._process.stdout:
                # Add the space that json.dumps writes and JSON.stringify omits.
                self._lines.put(line.replace('{"event":"', '{"event": "'))
        self._lines.put(None)

    def _said(self) -> str:
        self._errors.seek(0)
        return " ".join(self._errors.read().decode(errors="replace").split())[-SAID_CHARACTERS:] or "no output"
