"""``python -m jobqueue.keeper``: the process that a node starts.

Its standard input brings a line of JSON, the `Config`, and later the order to end. The end of standard input without that order
means that the node has died. A process that the node left behind may hold the other end open, so the parent's id counts as well.
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
"""Seconds for a node's process to be gone after its descriptors were closed."""


def main() -> None:
    """Keep a node's lease until the node orders the end, or dies."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a signal to all processes of a service is for the node
    line, _, received = _read_line().partition(b"\n")
    if not line:
        return
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
        # Readers of the node's log wait for the last process that has it open.
        with open(os.devnull, "wb") as nothing:  # noqa: PTH123 - a descriptor
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
