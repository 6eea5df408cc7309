"""Run ``jobqueue serve`` as a child process of a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobqueue.storage.embedded.binaries import LAUNCHER

START_TIMEOUT = 30.0
"""Maximum seconds until the service prints its URL."""

STOP_TIMEOUT = 40.0
"""Maximum seconds for a shutdown: the grace period, plus a margin for the other steps."""


class ServiceProcess:
    """A running service.

    On Linux, the service shuts down when the tests are killed, or when the thread that created this object ends.

    Args:
        arguments: arguments of ``jobqueue serve``.
        env: environment variables, in addition to those of the tests.
        cwd: the working directory, from which the service can import its module; None for the current one.

    Attributes:
        url: the service's URL.
        banner: the lines that the service printed at its start.
        log_lines: the lines of the service's log so far.

    Raises:
        RuntimeError: the service did not start; the message contains its log.
    """

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str], cwd: Path | None = None) -> None:
        self.process = self._start(["serve", *arguments], {**os.environ, **env}, cwd)
        self.url = ""
        self.banner: list[str] = []
        self.log_lines: list[str] = []
        self._log_reader = threading.Thread(target=self._read_log, daemon=True)
        self._log_reader.start()
        self._read_banner()
        if not self.url:
            self.kill()
            raise RuntimeError(f"the service did not start:\n{self.log}")

    @property
    def log(self) -> str:
        """The service's log so far."""
        return "".join(self.log_lines)

    def stop(self, timeout: float = STOP_TIMEOUT) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.process.kill()
        self.wait(10)

    def wait(self, timeout: float = 60) -> int:
        """Wait until the process ends and return the exit code."""
        code = self.process.wait(timeout)
        self._log_reader.join(5)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        return code

    def _start(self, arguments: Sequence[str], env: Mapping[str, str], cwd: Path | None) -> subprocess.Popen[str]:
        launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid())] if sys.platform == "linux" else []
        return subprocess.Popen(  # noqa: S603 - a trusted program
            [*launcher, sys.executable, "-m", "jobqueue", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            cwd=cwd,
        )

    def _read_banner(self) -> None:
        watchdog = threading.Timer(START_TIMEOUT, self.process.kill)
        watchdog.start()
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.banner.append(line.rstrip("\n"))
            if line.startswith("  serving"):
                self.url = line.split()[1].rstrip(",")
            if line.startswith("  try"):
                break
        watchdog.cancel()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        self.log_lines.extend(self.process.stderr)
