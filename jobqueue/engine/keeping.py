"""Run the keeper process, and write the state that it needs into shared memory.

C code of a handler can hold the interpreter's lock for minutes. No thread of the node runs
meanwhile, so the keeper renews the lease and reports the job: see `jobqueue.keeper`.
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
from jobqueue.retry import exponential_pause
from jobqueue.settings import Settings

STALL_SECONDS = 1.0
"""Seconds that the loop may be late before it counts as blocked."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0
"""First and longest delay before a keeper is restarted, in seconds. Each delay is twice the previous one."""

STEADY_SECONDS = 60.0
"""The restart delay starts anew after a keeper has run for this many seconds."""

END_SECONDS = 0.5
"""Seconds that a keeper may take to end on request. Then it is killed."""

slot_of_task: ContextVar[int] = ContextVar("slot_of_task", default=0)
"""The number of the slot where a worker marks its job. Tasks started by the handler inherit the number."""

log = structlog.get_logger()


class Pulse(trio.abc.Instrument):
    """Trio instrument that records that the loop runs, and for which job.

    Args:
        on_stall: called when the loop runs again after it was blocked, with the duration in seconds.
            The call happens before Trio acts on deadlines that passed meanwhile.
    """

    def __init__(self, state: NodeState, on_stall: Callable[[float], None]) -> None:
        self._state = state
        self._on_stall = on_stall
        state.name_loop()
        self._last = state.beat()
        current = state.current

        # A call of a closure takes two thirds of the time of a method call, and Trio calls this at
        # each step of each task.
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
    settings: Settings,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a keeper and restart it when it ends, until cancelled. Failures of the keeper are logged.

    Args:
        pid: the process id of this node.
        settings: the settings of this node.
    """
    level, fields = logs.setup or ("info", {})
    keep = settings.visibility_timeout, settings.stall_limit
    config = Config(database_url, settings.schema, pid, state.file, state.slots, *keep, level, dict(fields))
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
        pause = exponential_pause(ends, FIRST_PAUSE, LONGEST_PAUSE)
        log.error("the keeper ended: starting another", ended_with=how, again_in=pause)
        await trio.sleep(pause)


async def _run_process(order: bytes, file: int) -> int:
    # Start the keeper in a new session, so that Ctrl-C in a terminal reaches only the node.
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "jobqueue.keeper"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        pass_fds=[file],
        start_new_session=True,
    )
    assert process.stdin is not None  # noqa: S101 - stdin is a pipe
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
