"""A node of several: how a process that `supervisor.supervise` started gets its settings, reports, and ends with its parent.

All goes over one socket, which is the process's standard input. Down comes one line, the settings: passwords and tokens never stand
on a command line. Up go `Word`s. The socket is open for as long as the parent lives, so its end says that there is no parent any
more, on every system. (Linux's death signal would not do: it comes when the *thread* that started the process ends, and Trio starts
processes in threads of its cache, which end when they are idle.)
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
"""Seconds beyond its grace period and its margin in which a process may still end by itself."""


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a process tells its parent: that it serves; or, with a reason, why it ends, and whether a later start may do better."""

    reason: str | None = None
    passing: bool = False


class Parent:
    """The parent, as one of its processes sees it. Once this is made, the process does not outlive it.

    Attributes:
        settings: what the parent says to serve with.

    Raises:
        SettingsError: there is no parent, or it is gone.
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(fileno=os.dup(0))
        except OSError:
            raise SettingsError("--supervised is for the processes that --processes starts") from None
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a descriptor
            os.dup2(nothing.fileno(), 0)  # what a handler starts must not read what is ours
        with self._socket.makefile("rb") as file:
            line = file.readline()
        if not line:
            raise SettingsError("the parent was gone before it told what to serve")
        self.settings = msgspec.json.decode(line, type=Settings)
        threading.Thread(target=self._end_with_it, daemon=True).start()

    def tell(self, word: Word) -> None:
        """Tell the parent, if it is still there."""
        with contextlib.suppress(OSError):
            self._socket.sendall(msgspec.json.encode(word) + b"\n")

    def _end_with_it(self) -> None:
        # A thread, because a handler may block the loop.
        with contextlib.suppress(OSError):
            self._socket.recv(1)  # nothing more comes, but the end
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self.settings.grace_period + SHUTDOWN_MARGIN + KILL_MARGIN)
        logs.exit_now(70)
