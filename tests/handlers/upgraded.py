"""Handlers of the jobs in ``tests/upgrades/version_1.sql``. With HOLD=1, jobs stop halfway, so that a node can die with them."""

from __future__ import annotations

import os
import time

import trio

import jobqueue

app = jobqueue.App()
app.queue("declared", max_running=2, aging_interval=5)
app.periodic("0 4 * * *", timezone="Europe/Berlin", kind="echo", name="declared", payload={"text": "each night"}, queue="declared")

AT_ONCE = jobqueue.Backoff(base=0.01, cap=0.01)
HOLD = os.environ.get("HOLD") == "1"


@app.handler("echo")
async def echo(job: jobqueue.Job) -> object:
    return job.payload


@app.handler("größe 🐘")
async def unicode(job: jobqueue.Job) -> object:
    return job.payload


@app.handler("flaky", backoff=AT_ONCE)
async def flaky(job: jobqueue.Job) -> int:
    if job.attempt == 1:
        raise RuntimeError("the first attempt fails: größe 🐘")
    return job.attempt


@app.handler("hold", backoff=AT_ONCE)
async def hold(job: jobqueue.Job) -> object:
    """Fail once, store the progress and a checkpoint, and wait."""
    if job.attempt == 1 and HOLD:
        raise RuntimeError("the first attempt fails")
    job.progress(0.5, "halfway: größe 🐘")
    job.checkpoint({"page": 7})
    if HOLD:
        await trio.sleep_forever()
    return job.last_checkpoint


@app.handler("stop", max_retries=0)
async def stop(job: jobqueue.Job) -> None:
    """Wait in the only attempt."""
    job.progress(0.1)
    if HOLD:
        await trio.sleep_forever()


@app.handler("block", max_retries=1)
async def block() -> None:
    """Block the node."""
    if HOLD:
        time.sleep(600)  # noqa: ASYNC251 - the fault


@app.handler("rest")
async def rest() -> None:
    """Wait until somebody cancels the job."""
    await trio.sleep_forever()


@app.handler("nap")
async def nap() -> None:
    await trio.sleep(0.1 if HOLD else 0)


@app.handler("later")
async def later(job: jobqueue.Job) -> object:
    """Retry much later."""
    if job.last_checkpoint is None:
        job.checkpoint("later")
        raise jobqueue.Retry(delay=1800, reason="not now")
    return job.last_checkpoint


@app.handler("snooze")
async def snooze(job: jobqueue.Job) -> object:
    if job.last_checkpoint is None:
        job.checkpoint("snoozed")
        raise jobqueue.Snooze(1800)
    return job.last_checkpoint


# ------------------------------------------------------------------------------------------------------- jobs that die


@app.handler("fail", max_retries=1, backoff=AT_ONCE)
async def fail() -> None:
    raise RuntimeError("each attempt fails: größe 🐘")


@app.handler("discard")
async def discard() -> None:
    raise jobqueue.Discard("the address is gone")


@app.handler("slow", max_retries=0, timeout=0.05)
async def slow() -> None:
    await trio.sleep_forever()


@app.handler("unstorable", max_retries=0)
async def unstorable() -> object:
    return object()


@app.handler("typed")
async def typed(number: int) -> int:
    return number
