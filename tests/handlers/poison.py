"""Misbehaving handlers. Each appends its runs to the file that EFFECTS names."""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import sys
import threading
import time
from typing import Any

import msgspec
import trio

import jobqueue
from tests.handlers.plain import effect, until_started

app = jobqueue.App()

AT_ONCE = jobqueue.Backoff(base=0.01, cap=0.01)

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

MEMORY_LIMIT = 1 << 30
"""Size of the address space of a process that runs out of memory, in bytes."""


@app.handler("good")
async def good(job: jobqueue.Job) -> str:
    effect(job, "ran")
    await trio.sleep(0.01)
    return "done"


@app.handler("sleep")
async def sleep(job: jobqueue.Job, seconds: float) -> str:
    effect(job, "ran")
    await trio.sleep(seconds)
    return "done"


@app.handler("good-cpu", cpu=True)
def good_cpu(job: jobqueue.Job) -> str:
    effect(job, "ran")
    return "done"


# ------------------------------------------------------------------------------------------------------------ the end of a process


@app.handler("exit", backoff=AT_ONCE)
async def exit_(job: jobqueue.Job) -> None:
    effect(job, "ran")
    await until_started(job.attempt)
    os._exit(9)


@app.handler("exit-thread", backoff=AT_ONCE)
def exit_thread(job: jobqueue.Job) -> None:
    effect(job, "ran")
    trio.from_thread.run(until_started, job.attempt)
    os._exit(9)


@app.handler("exit-cpu", backoff=AT_ONCE, cpu=True)
def exit_cpu(job: jobqueue.Job) -> None:
    effect(job, "ran")
    os._exit(9)


@app.handler("segfault", backoff=AT_ONCE)
async def segfault(job: jobqueue.Job) -> None:
    effect(job, "ran")
    await until_started(job.attempt)
    ctypes.string_at(0)


@app.handler("segfault-thread", backoff=AT_ONCE)
def segfault_thread(job: jobqueue.Job) -> None:
    effect(job, "ran")
    trio.from_thread.run(until_started, job.attempt)
    ctypes.string_at(0)


@app.handler("segfault-cpu", backoff=AT_ONCE, cpu=True)
def segfault_cpu(job: jobqueue.Job) -> None:
    effect(job, "ran")
    ctypes.string_at(0)


@app.handler("killed-cpu", backoff=AT_ONCE, cpu=True)
def killed_cpu(job: jobqueue.Job) -> None:
    """Die like a process that uses too much memory."""
    effect(job, "ran")
    os.kill(os.getpid(), signal.SIGKILL)


@app.handler("memory-cpu", backoff=AT_ONCE, cpu=True)
def memory_cpu(job: jobqueue.Job) -> int:
    effect(job, "ran")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    held = [bytes(MEMORY_LIMIT // 100) for _ in range(100)]
    return len(held)


# -------------------------------------------------------------------------------------------------------------- recursion, waiting


def deeper(level: int) -> int:
    return deeper(level + 1) + 1


@app.handler("recurse", backoff=AT_ONCE)
async def recurse(job: jobqueue.Job) -> int:
    effect(job, "ran")
    return deeper(0)


@app.handler("recurse-thread", backoff=AT_ONCE)
def recurse_thread(job: jobqueue.Job) -> int:
    effect(job, "ran")
    return deeper(0)


@app.handler("recurse-cpu", backoff=AT_ONCE, cpu=True)
def recurse_cpu(job: jobqueue.Job) -> int:
    effect(job, "ran")
    return deeper(0)


@app.handler("hang-thread", backoff=AT_ONCE)
def hang_thread(job: jobqueue.Job) -> None:
    effect(job, "ran")
    threading.Event().wait()


@app.handler("hang-cpu", backoff=AT_ONCE, cpu=True)
def hang_cpu(job: jobqueue.Job) -> None:
    """Ignore SIGTERM and SIGINT."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    effect(job, "ran")
    while True:
        time.sleep(1)


@app.handler("block", backoff=AT_ONCE)
async def block(job: jobqueue.Job, seconds: float) -> str:
    """Block the loop in the first attempt."""
    effect(job, "ran")
    if job.attempt == 1:
        time.sleep(seconds)  # noqa: ASYNC251 - the fault
    return "done"


# -------------------------------------------------------------------------------------------------------------------- cancellation


@app.handler("swallow", backoff=AT_ONCE)
async def swallow(job: jobqueue.Job) -> None:
    effect(job, "ran")
    while True:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.1)


@app.handler("shield", backoff=AT_ONCE)
async def shield(job: jobqueue.Job) -> None:
    effect(job, "ran")
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


@app.handler("keep-cancelled", backoff=AT_ONCE)
async def keep_cancelled(job: jobqueue.Job) -> None:
    """Raise an old trio.Cancelled outside of its scope."""
    effect(job, "ran")
    kept: BaseException = RuntimeError("not cancelled")
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as error:
            kept = error
    raise kept


# ---------------------------------------------------------------------------------------------------------------------- exceptions


class Unpicklable(Exception):
    """An exception that cannot be rebuilt from its arguments, and has an attribute that cannot be pickled."""

    def __init__(self, path: str, *, line: int) -> None:
        super().__init__(f"{path}:{line}")
        self.lock = threading.Lock()


class Speechless(Exception):
    def __str__(self) -> str:  # noqa: PLE0307 - the fault
        sys.exit(3)


class Forgetful(jobqueue.Discard):
    def __init__(self) -> None:
        pass


RAISED: dict[str, Any] = {
    "BaseException": lambda: BaseException("of no kind"),
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
    "group": lambda: BaseExceptionGroup("both", [KeyboardInterrupt(), ValueError("one of two")]),
    "Unpicklable": lambda: Unpicklable("a.txt", line=3),
    "Speechless": Speechless,
}


@app.handler("raise", backoff=AT_ONCE)
async def raise_(job: jobqueue.Job, name: str) -> None:
    effect(job, "ran")
    make = RAISED[name]
    raise make()


@app.handler("raise-thread", backoff=AT_ONCE)
def raise_thread(job: jobqueue.Job, name: str) -> None:
    effect(job, "ran")
    make = RAISED[name]
    raise make()


@app.handler("raise-cpu", backoff=AT_ONCE, cpu=True)
def raise_cpu(job: jobqueue.Job, name: str) -> None:
    effect(job, "ran")
    make = RAISED[name]
    raise make()


@app.handler("forgetful-discard", backoff=AT_ONCE)
async def forgetful_discard(job: jobqueue.Job) -> None:
    effect(job, "ran")
    raise Forgetful


class Exiting(msgspec.Struct):
    def __post_init__(self) -> None:
        sys.exit(3)


@app.handler("exiting-payload")
async def exiting_payload(value: Exiting) -> None: ...


# ------------------------------------------------------------------------------------------------------------------------- results

RETURNED: dict[str, Any] = {
    "an object": object,
    "a lock": threading.Lock,
    "U+0000": lambda: "a\0b",
    "100 MB": lambda: "x" * 100_000_000,
    "3 million lists": lambda: [[] for _ in range(3_000_000)],
    "NaN": lambda: {"mean": math.nan},
}


@app.handler("return", backoff=AT_ONCE)
async def return_(job: jobqueue.Job, name: str) -> Any:
    effect(job, "ran")
    return RETURNED[name]()


@app.handler("return-thread", backoff=AT_ONCE)
def return_thread(job: jobqueue.Job, name: str) -> Any:
    effect(job, "ran")
    return RETURNED[name]()


@app.handler("return-cpu", backoff=AT_ONCE, cpu=True)
def return_cpu(job: jobqueue.Job, name: str) -> Any:
    effect(job, "ran")
    return RETURNED[name]()


# -------------------------------------------------------------------------------------------------------- left behind in a process


@app.handler("leave-thread")
def leave_thread(job: jobqueue.Job) -> None:
    """Leave a thread for which Python waits at the end of a process."""
    effect(job, "ran")
    threading.Thread(target=threading.Event().wait, daemon=False).start()


@app.handler("leave-thread-cpu", cpu=True)
def leave_thread_cpu(job: jobqueue.Job) -> int:
    effect(job, "ran")
    threading.Thread(target=threading.Event().wait, daemon=False).start()
    return os.getpid()
