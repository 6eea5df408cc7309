"""Handlers that block their node: in C with the interpreter's lock, or on the loop.

Each handler writes to the file that EFFECTS names.
"""

from __future__ import annotations

import ctypes
import os
import time

import trio

import jobqueue
from tests.handlers.plain import effect

app = jobqueue.App()

LIBC = ctypes.PyDLL(None)
"""Calls through this object keep the interpreter's lock."""


def due(job: jobqueue.Job, seconds: int, again: int | None) -> int:
    """Return how many seconds this attempt takes."""
    return seconds if job.attempt == 1 or again is None else again


def compute(seconds: float) -> None:
    """Compute in C for a known time. This holds the GIL and runs no bytecode, as a backtracking regular expression does."""
    end = time.monotonic() + seconds
    any(map(end.__le__, iter(time.monotonic, None)))


@app.handler("hold-asleep")
def hold_asleep(job: jobqueue.Job, seconds: int) -> None:
    effect(job, "began")
    LIBC.sleep(seconds)
    effect(job, "ended")


@app.handler("hold-computing")
def hold_computing(job: jobqueue.Job, seconds: int, again: int | None = None) -> None:
    effect(job, "began")
    compute(due(job, seconds, again))
    effect(job, "ended")


@app.handler("hold-on-loop")
async def hold_on_loop(job: jobqueue.Job, seconds: int, again: int | None = None) -> None:
    effect(job, "began")
    await trio.sleep(0.3)  # let the loop run other jobs
    LIBC.sleep(due(job, seconds, again))
    effect(job, "ended")


@app.handler("hold-in-task")
async def hold_in_task(job: jobqueue.Job, seconds: int) -> None:
    effect(job, "began")
    job.nursery.start_soon(hold, seconds)
    await trio.sleep(0.5)
    effect(job, "ended")


async def hold(seconds: int) -> None:
    await trio.sleep(0.3)
    LIBC.sleep(seconds)


@app.handler("block-loop")
async def block_loop(job: jobqueue.Job, seconds: int, again: int | None = None) -> None:
    effect(job, "began")
    await trio.sleep(0.3)
    time.sleep(due(job, seconds, again))  # noqa: ASYNC251 - the fault
    effect(job, "ended")


@app.handler("sleep")
async def sleep(job: jobqueue.Job, seconds: int, again: int | None = None) -> None:
    effect(job, "began")
    await trio.sleep(due(job, seconds, again))
    effect(job, "ended")


@app.handler("sleep-in-thread")
def sleep_in_thread(job: jobqueue.Job, seconds: float) -> None:
    effect(job, "began")
    time.sleep(seconds)
    effect(job, "ended")


@app.handler("leave-behind")
def leave_behind(job: jobqueue.Job, after: float, seconds: int) -> None:
    """Hold the interpreter after the job has timed out. This runs in a thread that the node has abandoned by then."""
    effect(job, "began")
    time.sleep(after)
    LIBC.sleep(seconds)
    effect(job, "ended")


@app.handler("fork")
def fork(job: jobqueue.Job) -> None:
    """Leave a child process that has all of the node's files open."""
    effect(job, "began")
    if os.fork() == 0:
        time.sleep(8)
        os._exit(0)
