"""What the nodes under chaos serve: one kind for each way in which a job can run and end.

Every run writes that it began and how it ended, and a run that succeeds returns its name: so the checker knows which one of several
runs the database accepted.
"""

from __future__ import annotations

import ctypes
import time
from functools import partial

import psycopg
import trio

import jobqueue
from benchmarks.chaos.effects import Recorder, What, new_run

PERSISTENT = 40
"""Retries of the kinds that must succeed in the end, however often a fault ends their runs."""

QUICK = jobqueue.Backoff(base=0.1, cap=1.0)

_libc = ctypes.PyDLL(None)
"""Its functions run without letting go of the GIL, unlike those of a `ctypes.CDLL`."""

app = jobqueue.App()
recorder = Recorder()

# The service's own limiters must not be what the record waits for.
_limiter = trio.CapacityLimiter(4)


async def record(run: str, job: jobqueue.Job, what: What) -> None:
    """Write a line of the record without blocking the loop."""
    await trio.to_thread.run_sync(partial(recorder.write, run, job, what), limiter=_limiter)


@app.handler("async", max_retries=PERSISTENT, backoff=QUICK)
async def sleep(job: jobqueue.Job, seconds: float = 0.0) -> dict[str, str]:
    run = new_run()
    await record(run, job, "began")
    await trio.sleep(seconds)
    await record(run, job, "ended")
    return {"run": run}


@app.handler("thread", max_retries=PERSISTENT, backoff=QUICK)
def thread(job: jobqueue.Job, seconds: float = 0.0) -> dict[str, str]:
    run = new_run()
    recorder.write(run, job, "began")
    time.sleep(seconds)
    recorder.write(run, job, "ended")
    return {"run": run}


@app.handler("cpu", max_retries=PERSISTENT, backoff=QUICK, cpu=True)
def cpu(job: jobqueue.Job, seconds: float = 0.0) -> dict[str, str]:
    return thread(job, seconds)


@app.handler("transaction", max_retries=PERSISTENT, backoff=QUICK)
def transaction(job: jobqueue.Job, conn: psycopg.Connection, number: int, seconds: float = 0.0) -> dict[str, str]:
    run = new_run()
    recorder.write(run, job, "began")
    write(conn, job)
    time.sleep(seconds)
    if job.attempt == 1 and number % 4 == 0:
        recorder.write(run, job, "failed")
        raise RuntimeError("as asked")
    recorder.write(run, job, "ended")
    return {"run": run}


@app.handler("rollback", max_retries=1, backoff=QUICK)
def rollback(job: jobqueue.Job, conn: psycopg.Connection) -> None:
    run = new_run()
    recorder.write(run, job, "began")
    write(conn, job)
    recorder.write(run, job, "failed")
    raise RuntimeError("as always")


def write(conn: psycopg.Connection, job: jobqueue.Job) -> None:
    """Leave a line behind, if the job's completion is committed with it."""
    conn.execute("INSERT INTO chaos.written (job_id, attempt) VALUES (%s, %s)", (job.id, job.attempt))


@app.handler("flaky", max_retries=PERSISTENT, backoff=QUICK)
async def flaky(job: jobqueue.Job, failures: int = 1) -> dict[str, str]:
    run = new_run()
    await record(run, job, "began")
    if job.attempt <= failures:
        await record(run, job, "failed")
        raise RuntimeError("as asked")
    await record(run, job, "ended")
    return {"run": run}


@app.handler("snooze", max_retries=PERSISTENT, backoff=QUICK)
async def snooze(job: jobqueue.Job, seconds: float = 0.5) -> dict[str, str]:
    run = new_run()
    await record(run, job, "began")
    if time.time() < job.created_at.timestamp() + seconds:
        await record(run, job, "snoozed")
        raise jobqueue.Snooze(seconds / 2)
    await record(run, job, "ended")
    return {"run": run}


@app.handler("doomed", backoff=QUICK)
async def doomed(job: jobqueue.Job) -> None:
    run = new_run()
    await record(run, job, "began")
    await record(run, job, "failed")
    raise RuntimeError("as always")


@app.handler("discard", max_retries=PERSISTENT, backoff=QUICK)
async def discard(job: jobqueue.Job) -> None:
    run = new_run()
    await record(run, job, "began")
    await record(run, job, "discarded")
    raise jobqueue.Discard("as asked")


@app.handler("gil", max_retries=PERSISTENT, backoff=QUICK)
def gil(job: jobqueue.Job, seconds: float) -> dict[str, str]:
    """Stop every other thread of the node for a while, as a regular expression that backtracks does."""
    run = new_run()
    recorder.write(run, job, "began")
    _libc.usleep(round(seconds * 1e6))
    recorder.write(run, job, "ended")
    return {"run": run}


@app.handler("gil on the loop", max_retries=PERSISTENT, backoff=QUICK)
async def gil_on_the_loop(job: jobqueue.Job, seconds: float) -> dict[str, str]:
    run = new_run()
    await record(run, job, "began")
    _libc.usleep(round(seconds * 1e6))
    await record(run, job, "ended")
    return {"run": run}


@app.handler("poisoned", max_retries=PERSISTENT, backoff=QUICK)
async def poisoned() -> None:
    raise jobqueue.Discard("a poisoned job that could be read")
