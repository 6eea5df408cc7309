"""Report that the loop is blocked, and which job blocks it.

An async handler that calls ``time.sleep`` or computes for long blocks the loop, and with it HTTP,
other jobs and the renewal of the lease. A blocked loop cannot report this. A thread can, because it
reads the loop's stack from outside.

States: *running* (the loop beats once per second) -> *blocked* (a beat is overdue, which is logged
once) -> *running* (logged, with the duration).

While C code of a handler holds the interpreter's lock, the thread cannot run either. The node's
keeper then reports the job instead (`NodeState.reported`).
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
import trio

from jobqueue.engine.executor import run_of
from jobqueue.keeper.node_state import NodeState

STALL_SECONDS = 1.0
"""Seconds that the loop may be late before it counts as blocked."""

BEAT_SECONDS = 1.0
"""Seconds between two beats of the loop."""

LOOK_AGAIN_SECONDS = 0.1
"""Seconds between two checks whether a blocked loop runs again."""

_LIBRARIES = tuple(
    f"{directory}{os.sep}"
    for directory in {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {str(Path(__file__).parent.parent)}
)
"""Directories of code that is not the user's."""

log = structlog.get_logger()


class _Pulse:
    """State that the loop writes and the thread reads.

    Attributes:
        due: when the loop will beat next unless it is blocked, on the monotonic clock.
        stopped: ends the thread.
    """

    def __init__(self) -> None:
        self.loop_thread = threading.get_ident()
        self.root_task = trio.lowlevel.current_root_task()
        self.stopped = threading.Event()
        self.beat()

    def beat(self) -> None:
        self.due = time.monotonic() + BEAT_SECONDS


async def run(node_state: NodeState | None = None, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Watch the calling loop until cancelled.

    The thread ends soon after the cancellation, and nothing waits for it.

    Args:
        node_state: the memory shared with the keeper; None without one.
    """
    pulse = _Pulse()
    threading.Thread(target=_watch, args=(pulse, node_state), name="jobqueue watchdog", daemon=True).start()
    task_status.started()
    try:
        while True:
            pulse.beat()
            await trio.sleep(BEAT_SECONDS)
    finally:
        pulse.stopped.set()


def _watch(pulse: _Pulse, node_state: NodeState | None) -> None:
    while True:
        look_at = max(pulse.due + STALL_SECONDS, time.monotonic() + LOOK_AGAIN_SECONDS)
        if _wait(pulse, node_state, look_at - time.monotonic()):
            return
        if node_state is not None and node_state.reported:
            continue
        due = pulse.due
        overslept = time.monotonic() - look_at
        blocked = time.monotonic() - due >= STALL_SECONDS
        culprit = _culprit(pulse) if blocked else {}
        if overslept > STALL_SECONDS and "job_id" not in culprit:
            # No thread of the process ran, so not only the loop was blocked. Causes are SIGSTOP, a paused machine, and C code of a
            # thread that held the interpreter's lock.
            log.warning("no thread of the node ran", seconds=round(overslept, 1))
        elif blocked:
            log.warning("the loop is blocked", seconds=round(time.monotonic() - due, 1), **culprit)
            while pulse.due == due:
                if _wait(pulse, node_state, LOOK_AGAIN_SECONDS):
                    return
            log.warning("the loop runs again", seconds=round(pulse.due - BEAT_SECONDS - due, 1), **culprit)


def _wait(pulse: _Pulse, node_state: NodeState | None, seconds: float) -> bool:
    """Wait up to `seconds`; return whether the thread is to end."""
    stopped = pulse.stopped.wait(seconds)
    if node_state is not None:
        node_state.beat_of_thread()
    return stopped


def _culprit(pulse: _Pulse) -> dict[str, Any]:
    """Return the job that runs on the loop and the current line of its code. Without a job, return the service's own line."""
    stack = list(_outward(sys._current_frames().get(pulse.loop_thread)))  # noqa: SLF001 - a documented function, meant for debuggers
    try:
        tasks = _running(pulse.root_task)
        # The executor is not on the stack of a task in a handler's nursery, but on the stack of one of its ancestors.
        frames = [*stack, *(frame for task in tasks[1:] for frame, _ in task.iter_await_frames())]
    except (RuntimeError, TypeError):
        return {}  # tasks changed during the read, so the loop runs again
    if tasks:
        # Frames outside of the task's outermost frame belong to Trio and its caller.
        outermost = getattr(tasks[0].coro, "cr_frame", None)
        stack = stack[: stack.index(outermost) + 1] if outermost in stack else stack
    run = run_of(frames)
    job = {} if run is None else dict(run.job.log_context)
    theirs = [frame for frame in stack if tasks and not frame.f_code.co_filename.startswith(("<", *_LIBRARIES))]
    line = next(iter(theirs or stack), None)
    return job if line is None else {**job, "at": f"{line.f_code.co_filename}:{line.f_lineno} in {line.f_code.co_qualname}"}


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _running(root: trio.lowlevel.Task | None) -> list[trio.lowlevel.Task]:
    """Return the task that the loop currently runs, then its ancestors; an empty list if no task runs."""
    seen = [] if root is None else [root]
    while seen:
        task = seen.pop()
        if getattr(task.coro, "cr_running", False):
            ancestry = [task]
            while (nursery := ancestry[-1].parent_nursery) is not None:
                ancestry.append(nursery.parent_task)
            return ancestry
        seen += (child for nursery in task.child_nurseries for child in nursery.child_tasks)
    return []
