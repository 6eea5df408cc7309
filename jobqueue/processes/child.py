"""Connect a process of `processes.parent.supervise` to its parent: receive the settings, report, and end with the parent.

The standard input of the process is a socket to the parent. The parent sends the settings in one line, because passwords and tokens
must not appear on a command line. The process sends `Report`s. On every system, the socket closes when the parent ends. The death
signal of Linux does not work here, because the kernel sends it when the *thread* that started the process ends. Trio starts
processes in cached threads, and an idle cached thread ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time

import msgspec

from jobqueue import logs
from jobqueue.errors import SettingsError
from jobqueue.service import SHUTDOWN_MARGIN
from jobqueue.settings import Settings

KILL_MARGIN = 0.5
"""Seconds after which a process is killed if it still runs after its grace period and `SHUTDOWN_MARGIN`."""


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message to the parent. Without a reason, it means that the process accepts work; with a reason, that the process ends.

    Attributes:
        reason: why the process ends.
        passing: whether a later start may succeed.
    """

    reason: str | None = None
    passing: bool = False


class Parent:
    """The connection to the parent. Once it exists, the process ends when the parent ends.

    Attributes:
        settings: the settings of the node.

    Raises:
        SettingsError: the process has no parent, or the parent has ended.
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(fileno=os.dup(0))
        except OSError:
            raise SettingsError("--supervised is internal: only `jobqueue serve --processes` may start a process with it") from None
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - only its descriptor is used
            os.dup2(nothing.fileno(), 0)  # processes that a handler starts must not read the socket
        with self._socket.makefile("rb") as file:
            line = file.readline()
        if not line:
            raise SettingsError("the parent process ended before it sent the settings: start the service again")
        self.settings = msgspec.json.decode(line, type=Settings)
        threading.Thread(target=self._end_with_it, daemon=True).start()

    def tell(self, word: Report) -> None:
        """Send a message to the parent, if the parent still runs."""
        with contextlib.suppress(OSError):
            self._socket.sendall(msgspec.json.encode(word) + b"\n")

    def _end_with_it(self) -> None:
        # This runs in a thread, because a handler may block the event loop.
        with contextlib.suppress(OSError):
            self._socket.recv(1)  # returns when the parent ends
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self.settings.grace_period + SHUTDOWN_MARGIN + KILL_MARGIN)
        logs.exit_now(70)
