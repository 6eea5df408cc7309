"""The node's side of its keeper: run the keeper's process, and write what it needs to know into shared memory.

A handler can hold the interpreter's lock for minutes, in C. No thread of the node runs meanwhile, so another process renews the
lease and reports the job: see `jobqueue.keeper`.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from contextvars import ContextVar

import structlog
import trio

from jobqueue import logs
from jobqueue.keeper.node_state import NodeState
from jobqueue.keeper.watch import END, Config

STALL_SECONDS = 1.0
"""Seconds that the loop may be late before it counts as stuck."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0
"""Seconds between the end of a keeper and the start of the next: each pause is twice the last."""

STEADY_SECONDS = 60.0
"""A keeper that lasted for so many seconds has the earlier ends forgiven."""

END_SECONDS = 0.5
"""Seconds for a keeper to end when it is ordered to. Then it is killed."""

slot_of_task: ContextVar[int] = ContextVar("slot_of_task", default=0)
"""The number of the slot in which a worker marks its job. Tasks that a handler starts inherit it."""

log = structlog.get_logger()


class Pulse(trio.abc.Instrument):
    """Writes that the loop runs, and for which job, as an instrument of Trio.

    Args:
        on_stall: called when the loop runs again after it was stuck, with the seconds that this lasted, before any deadline that
            passed meanwhile takes effect.
    """

    def __init__(self, state: NodeState, on_stall: Callable[[float], None]) -> None:
        self._state = state
        self._on_stall = on_stall
        state.name_loop()
        self._last = state.beat()
        current = state.current

        # A closure is called in two thirds of the time of a method, and this is called at each step of each task.
        def before_task_step(task: trio.lowlevel.Task) -> None:
            current[0] = task.context.get(slot_of_task, 0)

        self.before_task_step = before_task_step  # type: ignore[method-assign]

    def after_io_wait(self, timeout: float) -> None:
        now = self._state.beat()
        seconds = (now - self._last) / 1e9
        if seconds > timeout + STALL_SECONDS:
            self._on_stall(seconds)
        self._last = now


async def run(
    state: NodeState,
    database_url: str,
    pid: int,
    lease: float,
    stall_limit: float,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Keep a keeper running until cancelled, then end it. Its failures are reported, and are not the node's.

    Args:
        pid: of this process.
        lease: seconds that a renewal lasts.
        stall_limit: seconds that the loop may be stuck before the node's jobs are handed back.
    """
    level, fields = logs.setup or ("info", {})
    config = Config(database_url, pid, state.file, state.slots, lease, stall_limit, level, dict(fields))
    order = json.dumps(config._asdict()).encode() + b"\n"
    task_status.started()
    ends = 0
    while True:
        began = trio.current_time()
        try:
            how = f"exit code {await _run_process(order, state.file)}"
        except OSError as error:
            how = str(error)
        ends = ends + 1 if trio.current_time() - began < STEADY_SECONDS else 1
        pause = min(FIRST_PAUSE * 2 ** min(ends - 1, 20), LONGEST_PAUSE)
        log.error("the keeper of the lease ended, starting another", ended_with=how, again_in=pause)
        await trio.sleep(pause)


async def _run_process(order: bytes, file: int) -> int:
    # In a session of its own: Ctrl-C in a terminal is for the node.
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "jobqueue.keeper"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=[file],
        start_new_session=True,
    )
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    try:
        with contextlib.suppress(trio.BrokenResourceError):
            await process.stdin.send_all(order)
        return await process.wait()
    finally:
        with trio.move_on_after(END_SECONDS, shield=True):
            with contextlib.suppress(trio.BrokenResourceError):
                await process.stdin.send_all(END)
            await process.wait()
        if process.returncode is None:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
        await process.stdin.aclose()
