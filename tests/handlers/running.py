"""Handlers for tests that cancel a running job, follow its progress, or continue from its checkpoint."""

from __future__ import annotations

import time
from typing import Any

import trio

import jobqueue
from tests.handlers.plain import effect

app = jobqueue.App()

LONG = 600.0
NOW = jobqueue.Backoff(base=0.01, cap=0.01)


@app.handler("sleep")
async def sleep(job: jobqueue.Job) -> None:
    effect(job, "began")
    await trio.sleep(LONG)
    effect(job, "ended")


@app.handler("thread")
def thread(job: jobqueue.Job) -> None:
    effect(job, "began")
    while not job.cancelled:
        time.sleep(0.01)
    effect(job, "stopped")


@app.handler("cpu", cpu=True)
def cpu(job: jobqueue.Job) -> None:
    effect(job, "began")
    time.sleep(LONG)
    effect(job, "ended")


@app.handler("stubborn")
async def stubborn(job: jobqueue.Job) -> None:
    effect(job, "began")
    while True:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.05)


@app.handler("retries", max_retries=5, backoff=NOW)
async def retries(job: jobqueue.Job) -> None:
    """Turn a cancellation into a failure."""
    effect(job, "began")
    try:
        await trio.sleep(LONG)
    finally:
        raise jobqueue.Retry(0.01, "not finished")


@app.handler("succeeds")
async def succeeds(job: jobqueue.Job) -> str:
    """Succeed when cancelled."""
    effect(job, "began")
    with trio.CancelScope(shield=True):
        while not job.cancelled:  # noqa: ASYNC110 - no event announces it
            await trio.sleep(0.01)
    return "done all the same"


@app.handler("pages", max_retries=5, backoff=NOW)
async def pages(job: jobqueue.Job, fail_at: int = -1, hold_at: int = -1) -> list[int]:
    """Process page after page, starting at the last checkpoint."""
    first = 0 if job.last_checkpoint is None else job.last_checkpoint["page"]
    effect(job, f"from-{first}")
    done = []
    for page in range(first, 5):
        job.progress(page / 5, f"page {page} of 5")
        job.checkpoint({"page": page})
        done.append(page)
        if page == fail_at and job.attempt == 1:
            raise RuntimeError("as asked")
        if page == hold_at and job.attempt == 1:
            effect(job, "holds")
            await trio.sleep(LONG)
    job.progress(1.0, "all pages")
    return done


@app.handler("pages-in-a-thread", max_retries=5, backoff=NOW)
def pages_in_a_thread(job: jobqueue.Job) -> Any:
    if job.last_checkpoint is None:
        job.checkpoint({"attempt": job.attempt})
        raise RuntimeError("as asked")
    return job.last_checkpoint


@app.handler("poisonous-pages", max_retries=1, backoff=NOW)
async def poisonous_pages(job: jobqueue.Job) -> None:
    job.checkpoint({"before": job.last_checkpoint, "attempt": job.attempt})
    raise RuntimeError("as always")


@app.handler("cpu-notes", cpu=True, max_retries=0)
def cpu_notes(job: jobqueue.Job) -> None:
    job.progress(0.5)


@app.handler("steps")
async def steps(job: jobqueue.Job, steps: int = 3, seconds: float = 0.3) -> str:
    """Report each step, then sleep."""
    for step in range(steps):
        job.progress(step / steps, f"step {step}")
        job.checkpoint(step)
        await trio.sleep(seconds)
    return "walked"


@app.handler("fan-out", max_retries=0)
async def fan_out(job: jobqueue.Job, children: int = 3, fail: int = 0) -> str:
    """Start tasks and return long before they end. The attempt ends with the last task."""

    async def child(number: int) -> None:
        effect(job, f"child-{number}-began")
        if number < fail:
            await together.wait()
            raise ValueError(f"child {number}")
        try:
            await trio.sleep(LONG if fail else 0.3)
            effect(job, f"child-{number}-ended")
        except trio.Cancelled:
            effect(job, f"child-{number}-cancelled")
            raise

    together = trio.Event()
    for number in range(children):
        job.nursery.start_soon(child, number)
    await trio.sleep(0.1)
    together.set()
    return "returned"


@app.handler("sleeping-children")
async def sleeping_children(job: jobqueue.Job) -> None:
    async def child() -> None:
        effect(job, "child-began")
        try:
            await trio.sleep(LONG)
        finally:
            effect(job, "child-ended")

    job.nursery.start_soon(child)
