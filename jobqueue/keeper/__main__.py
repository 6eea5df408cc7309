"""Run ``python -m jobqueue.keeper``, the process that a node starts.

The node writes one line of JSON, the `Config`, to the keeper's standard input, and later the
command to end. If standard input ends without that command, the node has died. An abandoned child of
the node may hold the other end of the pipe open, so the keeper also checks its parent's process id.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time

from jobqueue.keeper.node_state import NodeState
from jobqueue.keeper.watch import END, Config, Keeper

DEATH_SECONDS = 10.0
"""Seconds that a node's process may take to end after its descriptors were closed."""


def main() -> None:
    """Keep a node's lease until the node sends the command to end, or dies."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # signals to the whole process group concern the node only
    line, _, received = _read_line().partition(b"\n")
    if line in (b"", END.strip()):
        return  # the node stopped before it sent the configuration
    config = Config(**json.loads(line))
    keeper = Keeper(config, NodeState(config.file, config.slots))
    while os.getppid() == config.pid:
        if received == END:
            return
        if not select.select([0], [], [], keeper.interval)[0]:
            keeper.look()
        elif not (part := os.read(0, 4096)):
            _wait_for_death(config.pid)
            break
        else:
            received += part
    if os.getppid() != config.pid:
        # Close the log: its readers see the end only when no process has the log open any more.
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123 - only its descriptor is used
            os.dup2(nothing.fileno(), 2)
        keeper.end_lease()


def _read_line() -> bytes:
    received = b""
    while b"\n" not in received and (part := os.read(0, 65_536)):
        received += part
    return received


def _wait_for_death(pid: int) -> None:
    deadline = time.monotonic() + DEATH_SECONDS
    while os.getppid() == pid and time.monotonic() < deadline:
        time.sleep(0.01)


if __name__ == "__main__":
    main()
