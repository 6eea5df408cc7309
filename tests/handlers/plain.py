"""Handlers for the tests of the whole service. Each appends its runs to the file that EFFECTS names."""

from __future__ import annotations

import os
import time
from pathlib import Path

import trio

import jobqueue

app = jobqueue.App()


def effect(job: jobqueue.Job, what: str) -> None:
    """Append one line, in one write, so that it survives the death of the process."""
    with open(os.environ["EFFECTS"], "ab", buffering=0) as file:  # noqa: PTH123
        file.write(f"{what} {job.id} {job.attempt}\n".encode())


@app.handler("echo")
async def echo(job: jobqueue.Job) -> object:
    effect(job, "ran")
    return job.payload


@app.handler("sleep")
async def sleep(job: jobqueue.Job, seconds: float = 0.01, again: float | None = None) -> None:
    effect(job, "began")
    await trio.sleep(seconds if job.attempt == 1 or again is None else again)
    effect(job, "ended")


@app.handler("thread")
def thread(job: jobqueue.Job, seconds: float = 0.01, again: float | None = None) -> None:
    effect(job, "began")
    time.sleep(seconds if job.attempt == 1 or again is None else again)
    effect(job, "ended")


@app.handler("cpu", cpu=True)
def cpu(job: jobqueue.Job, seconds: float = 0.01, again: float | None = None) -> None:
    effect(job, "began")
    time.sleep(seconds if job.attempt == 1 or again is None else again)
    effect(job, "ended")


@app.handler("fail", max_retries=1, backoff=jobqueue.Backoff(base=0.01, cap=0.01))
async def fail(job: jobqueue.Job) -> None:
    effect(job, "ran")
    raise RuntimeError("as asked")


@app.handler("flaky", max_retries=50, backoff=jobqueue.Backoff(base=0.005, cap=0.02))
async def flaky(job: jobqueue.Job) -> None:
    effect(job, "ran")
    if job.attempt < 4:
        raise RuntimeError("not yet")


@app.handler("fail-slowly", backoff=jobqueue.Backoff(base=12, cap=12, jitter=0))
async def fail_slowly(job: jobqueue.Job) -> None:
    effect(job, "ran")
    if job.attempt == 1:
        raise RuntimeError("come back later")


def note_start() -> None:
    """Record that a node has started. A handler that kills its own process first waits for one such record per attempt."""
    with starts_file().open("a") as file:
        file.write(".")


async def until_started(attempt: int) -> None:
    """Wait until the test has called `note_start` this many times."""
    while not (starts_file().exists() and len(starts_file().read_text()) >= attempt):  # noqa: ASYNC110 - no event announces it
        await trio.sleep(0.02)


def starts_file() -> Path:
    return Path(os.environ["EFFECTS"] + "-starts")


@app.handler("kill")
async def kill(job: jobqueue.Job) -> None:
    effect(job, "ran")
    await until_started(job.attempt)
    os._exit(9)
